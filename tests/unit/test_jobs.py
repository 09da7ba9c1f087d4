"""Submitting, as far as it needs no cluster: what travels, what is refused, what the user reads. No Ray anywhere."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from actors import jobs, onhead, package
from rayfed.config import user_code
from rayfed.config.schema import Config, Study, load_config
from rayfed.errors import ConfigError, Interrupted, PlacementError, RunFailed
from rayfed.launch.progress import line
from tests import toy

OWN = '''"""Own."""
from rayfed.methods.fedavg import FedAvg


class Mine(FedAvg):
    """A method.

    Source: none.
    """
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "my method.py").write_text(OWN)
    return tmp_path / "my method.py"


def job(name: str, status: str = "RUNNING", code: int | None = None, **about: str) -> Any:
    metadata = {
        "rayfed": "job",
        "run": name,
        "out": "runs",
        "method": "fedavg",
        "clients": "12",
        "rounds": "9",
        **about,
    }
    return SimpleNamespace(
        submission_id=name, status=SimpleNamespace(value=status), driver_exit_code=code, metadata=metadata,
        start_time=1000, message="",
    )  # fmt: skip


class Client:
    """Ray's client as far as it is used: jobs that are given, and a log that comes in pieces and breaks once."""

    def __init__(self, *known: Any, log: str = "", pieces: int = 7):
        self.known, self.whole, self.pieces, self.breaks = {j.submission_id: j for j in known}, log, pieces, 1
        self.stopped: list[str] = []
        self.sent: dict[str, Any] = {}
        self.unready = 0

    def list_jobs(self) -> list[Any]:
        return list(self.known.values())

    def get_job_info(self, name: str) -> Any:
        return self.known.get(name) or job(name, "SUCCEEDED", 0)

    def get_job_logs(self, name: str) -> str:
        return self.whole

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        step = max(1, len(self.whole) // self.pieces)
        for i in range(0, len(self.whole), step):
            if i > len(self.whole) // 2 and self.breaks:
                self.breaks -= 1
                raise RuntimeError("connection closed")
            yield self.whole[i : i + step]

    def submit_job(self, **how: Any) -> str:
        if self.unready:
            self.unready -= 1
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try again later."
            )
        where = Path(how["runtime_env"]["working_dir"])
        files = {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob("*") if p.is_file()}
        self.sent = {**how, "files": files}
        return how["submission_id"]

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)
        if name in self.known:
            self.known[name].status.value = "STOPPED"

    def delete_job(self, name: str) -> None: ...


@pytest.fixture
def cluster() -> Any:
    def make(*known: Any, **how: Any) -> jobs.Cluster:
        made = jobs.Cluster.__new__(jobs.Cluster)
        made.url, made.client = "http://head:8265", Client(*known, **how)
        return made

    return make


# -- what travels --------------------------------------------------------------------------------------------------------


def test_own_files_travel_under_names_that_a_run_folder_keeps(own: Path, tmp_path: Path) -> None:
    c = toy.config(f"{own}:Mine")
    packed = package.pack(c)
    (name,) = packed.texts
    assert user_code.WRITTEN.fullmatch(name) and packed.config["method"]["name"] == f"{name}:Mine"
    target = tmp_path / "job"
    target.mkdir()
    packed.write(target, project=False)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [name, "config.yaml"]
    # as the job does: its folder is where it is, and the user's file is nowhere
    code = "from rayfed.config.schema import load_config; print(load_config('config.yaml').method.name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True)
    assert done.stdout.strip() == f"{name}:Mine", done.stderr


def test_local_data_travel_and_hidden_files_and_names_do_not(tmp_path: Path) -> None:
    data, model = tmp_path / "my data", tmp_path / "net"
    for d in (data, model):
        (d / ".git").mkdir(parents=True)
        (d / ".git" / "x").write_text("x")
        (d / "f.bin").write_bytes(b"12345")
    raw = {
        "task": {"data": {"name": f"parquet:{data}"}, "model": f"hf:{model}"},
        "arms": {"a": {"task": {"data": {"name": f"parquet:{data}/"}}}, "b": {"task": {"model": "hf:some/name"}}},
        "name": str(data),
        "init": {"from": str(model)},
    }
    packed = package.pack(SimpleNamespace(to_dict=lambda: raw))  # type: ignore[arg-type]
    assert packed.config["task"] == {"data": {"name": "parquet:data/0-my-data"}, "model": "hf:data/1-net"}
    assert packed.config["arms"]["a"]["task"]["data"]["name"] == "parquet:data/0-my-data"
    assert packed.config["arms"]["b"]["task"]["model"] == "hf:some/name"
    assert packed.config["name"] == str(data) and packed.config["init"]["from"] == "data/1-net"
    target = tmp_path / "job"
    target.mkdir()
    packed.write(target, project=False)
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert files == {"config.yaml", "data/0-my-data/f.bin", "data/1-net/f.bin"}


def test_large_data_are_refused_unless_shared(tmp_path: Path) -> None:
    with open(tmp_path / "train.parquet", "wb") as f:
        f.truncate(package.LIMIT + 1)  # takes no space
    request: Any = SimpleNamespace(to_dict=lambda: {"task": {"data": {"name": f"parquet:{tmp_path}"}}})
    with pytest.raises(ConfigError, match=r"^storage: 200\.0 MB .*--shared DIR") as e:
        package.pack(request)
    assert str(tmp_path) in str(e.value) and e.value.exit_code == 2
    packed = package.pack(request, shared=[tmp_path.parent])
    assert packed.folders == {} and packed.config["task"]["data"]["name"] == f"parquet:{tmp_path}"


def test_the_project_travels_whole_where_the_head_lacks_it(tmp_path: Path) -> None:
    package.Package({"name": "x"}).write(tmp_path, project=True)
    program = (
        "import rayfed.cli, actors.driver, rayfed.config.load as c; print(rayfed.__file__, 'quickstart' in c.ready())"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "rayfed" / "__init__.py"), "True"], done.stderr
    assert not list(tmp_path.rglob("__pycache__/*.py")) and not (tmp_path / "tests").exists()


# -- submit --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A head like this machine."""
    found = {**onhead.about(), "missing": []}
    monkeypatch.setattr(jobs.Cluster, "ask", lambda self, *args: found)
    return found


def test_a_job_is_the_command_in_a_folder_with_exactly_its_files(
    cluster: Any, same: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    c, made = toy.config(f"{own}:Mine"), cluster()
    monkeypatch.setattr(jobs, "POLL", 0.01)
    made.client.unready = 2  # a head that has just started
    name = jobs.submit(made, c, package.pack(c), "run", ["config.yaml"], "runs/a b")
    sent = made.client.sent
    assert sent["entrypoint"] == "exec python -m rayfed.cli run config.yaml --out \"${RAYFED_HOME:-$HOME}\"/'runs/a b'"
    assert len(sent["files"]) == 2 and yaml.safe_load(sent["files"]["config.yaml"])["rounds"] == c.rounds
    about = sent["metadata"]
    assert about["job_name"] == about["run"] == name == sent["submission_id"] and name.startswith("toy-")
    assert about["clients"] == "14" and about["per_round"] == "7" and about["method"].endswith(":Mine")
    env = sent["runtime_env"]["env_vars"]
    assert env["RAYFED_RUN_ID"] == name and env["MLFLOW_TRACKING_URI"] == "http://m" and "WANDB_API_KEY" not in env
    same["project"] = "other"
    jobs.submit(made, c, package.pack(c), "run", ["config.yaml"], "/abs")
    assert "rayfed/cli/__init__.py" in made.client.sent["files"] and made.client.sent["entrypoint"].endswith(
        " --out /abs"
    )


def test_an_ended_job_is_continued_where_its_folder_lies(
    cluster: Any, same: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.parquet").write_text("x")
    folders = json.dumps({"data/0-data": str(data)})
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    made = cluster(job("j", "STOPPED", folders=folders), job("k"), job("s", "FAILED", 4, out="s3://b/x?region=eu"))
    monkeypatch.setattr(jobs, "Cluster", lambda address: made)
    assert jobs.again("j", ["rounds=12"], address=None)[1] == "j-2"
    sent = made.client.sent
    assert sent[
        "entrypoint"
    ] == 'exec python -m rayfed.cli resume "${RAYFED_HOME:-$HOME}"/runs/j --set rounds=12' and sent["files"] == {
        "data/0-data/train.parquet": b"x"
    }
    about = sent["metadata"]
    assert (about["run"], about["out"], about["rounds"], about["folders"]) == ("j", "runs", "12", folders)
    assert about["job_name"] == "j-2" and about["method"] == "fedavg" and about["command"] == "resume"
    env = sent["runtime_env"]["env_vars"]
    assert env["RAYFED_RUN_ID"] == "j" and env["RAYFED_TAKE_OVER"] == "1"
    made.client.known["j-2"] = job("j-2", **about)  # that one fails too, later
    with pytest.raises(ConfigError, match="j-2 is still at work on it; end it with: rayfed stop j-2"):
        jobs.again("j", [], address=None)
    made.client.known["j-2"].status.value = "FAILED"
    assert jobs.again("j-2", [], address=None)[1] == "j-3"
    assert jobs.again("s", [], address=None, more=("--scale-up", "9"))[1] == "s-2"
    assert made.client.sent["entrypoint"].endswith(" resume 's3://b/x/s?region=eu' --scale-up 9")
    for where, out in (("/nfs/runs/r", "/nfs/runs"), ("runs/r", "runs"), ("gs://b/runs/r?x=y", "gs://b/runs?x=y")):
        assert jobs.again(where, [], address=None)[1] == "r-2"
        about = made.client.sent["metadata"]
        assert (about["run"], about["out"]) == ("r", out) and "folders" not in about
    with pytest.raises(ConfigError, match="k is still at work"):
        jobs.again("k", [], address=None)
    with pytest.raises(ConfigError, match=r"has no job 'nn'.*runs/NAME-ID"):
        jobs.again("nn", [], address=None)
    (data / "train.parquet").unlink()
    data.rmdir()
    with pytest.raises(ConfigError, match="travelled with the job and is not here any more"):
        jobs.again("j", [], address=None)


def test_the_state_of_a_study_and_of_a_sweep_is_that_of_their_newest_run(tmp_path: Path) -> None:
    for i, where in enumerate(("a/seed-0", "b/seed-1")):
        (tmp_path / "study" / where).mkdir(parents=True)
        (tmp_path / "study" / where / "state.json").write_text(json.dumps({"round": i}))
    (tmp_path / "sweep" / "trials" / "00004" / "seed-2").mkdir(parents=True)
    (tmp_path / "sweep" / "trials" / "00004" / "seed-2" / "state.json").write_text('{"round": 7}')
    os.utime(tmp_path / "study" / "a" / "seed-0" / "state.json", (0, 0))
    study, sweep = onhead.states(tmp_path / "study"), onhead.states(tmp_path / "sweep")
    assert study == {"arm": "b", "seed": 1, "round": 1} and line(study) == "b seed 1  round 1/?"
    assert sweep == {"trial": "00004", "seed": 2, "round": 7} and line(sweep) == "trial 00004 seed 2  round 7/?"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"python": "3.9.1"}, "Python 3.9.1 there"),
        ({"ray": "2.10.0"}, "Ray 2.10.0 there"),
        ({"ray": None}, "has no Ray"),
        ({"missing": ["peft", "rich"]}, "pip install peft rich"),
    ],
)
def test_a_head_that_cannot_run_it_is_one_sentence(change: dict[str, Any], told: str) -> None:
    there = {**onhead.about(), "missing": []}
    assert jobs.check(there, "http://h") is False
    with pytest.raises(PlacementError) as e:
        jobs.check({**there, **change}, "http://h")
    assert told in str(e.value) and "\n" not in str(e.value) and e.value.exit_code == 3


def test_a_folder_is_named_by_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.launch.start import run_local

    monkeypatch.setattr("rayfed.report.write_report", lambda path: None)
    monkeypatch.setenv("RAYFED_RUN_ID", "toy-1")
    done = run_local(toy.config(rounds=1), out=tmp_path)
    assert done.path == tmp_path / "toy-1"
    monkeypatch.setenv("RAYFED_HOME", str(tmp_path.parent))
    assert onhead.place(tmp_path.name, "toy-1") == done.path
    assert onhead.states(done.path)["round"] == 1


def test_what_is_wrong_is_told_before_the_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="method"):
        jobs.request("quickstart", ["method.name=nothing"], command="run", out=None, address="http://127.0.0.1:1")
    with pytest.raises(PlacementError, match="no Ray dashboard answers"):
        jobs.request("quickstart", [], command="run", out=None, address="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"space 'x\.py'"):
        jobs.request("quickstart", [], command="sweep", spaces="x.py,b", out=None, address=None)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(n, raising=False)
    for wrong in (None, "local", "ray://head:10001"):
        with pytest.raises(ConfigError, match="--address"):
            jobs.url(wrong)
    monkeypatch.setenv("RAY_ADDRESS", "head:8265")
    assert jobs.url(None) == "http://head:8265" and jobs.url("https://x/") == "https://x"
    assert jobs.url("auto") == "http://127.0.0.1:8265"


def test_a_token_is_honoured_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(n, "")
        monkeypatch.delenv(n)
    monkeypatch.setenv("HOME", str(tmp_path))
    jobs.honour_token()
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    jobs.honour_token()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    jobs.honour_token()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


# -- follow, status, stop ------------------------------------------------------------------------------------------------

LOG = (
    "2026-01-01 00:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job j: exec python -m rayfed.cli run config.yaml\n"
    "starting\nround 1/9  accuracy/global 0.100\n[2/6] a seed 1  round 7/9  loss/global 1.000\nreport: /r/report.html\n"
)


def test_following_shows_the_progress_of_a_run_once_though_the_connection_breaks(cluster: Any, capsys: Any) -> None:
    made = cluster(job("j", "SUCCEEDED", 0), log=LOG)
    assert jobs.follow(made, "j") == 0
    assert capsys.readouterr().out == "".join(LOG.splitlines(keepends=True)[2:])
    assert made.client.breaks == 0


@pytest.mark.parametrize(
    ("status", "code", "want", "said"),
    [
        ("SUCCEEDED", 0, 0, "done"),
        ("FAILED", 3, 3, "failed (exit 3)"),
        ("FAILED", 130, 130, "interrupted"),
        ("FAILED", None, 4, "failed (exit 4)"),
        ("FAILED", -9, 4, "failed (exit 4)"),
        ("STOPPED", None, 143, "stopped"),
        ("RUNNING", None, None, "running"),
    ],
)
def test_exit_codes_and_words(status: str, code: int | None, want: int | None, said: str) -> None:
    assert jobs.standing(job("j", status, code)) == said
    if want is not None:
        assert jobs.exit_code(job("j", status, code)) == want


def test_ctrl_c_detaches(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(coroutine: Any) -> None:
        coroutine.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio, "run", interrupt)
    with pytest.raises(Interrupted, match=r"the job goes on.*rayfed logs -f j.*rayfed stop j") as e:
        jobs.follow(cluster(job("j")), "j")
    assert e.value.exit_code == 130


def test_the_list_has_this_projects_jobs_with_their_round(cluster: Any) -> None:
    other = SimpleNamespace(submission_id="o", metadata={}, start_time=5)
    made = cluster(job("j", runs="6"), other, log=LOG)
    (row,) = jobs.status(made)
    assert (row["job"], row["status"], row["method"], row["round"], row["rounds"], row["clients"], row["runs"]) == (
        "j", "running", "fedavg", 7, 9, 12, 6,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"has no job 'jj' \(did you mean 'j'\?\)"):
        made.job("jj")


def test_stop_waits_for_the_round_and_tells_of_one_that_has_ended(cluster: Any) -> None:
    made = cluster(job("j"))
    assert "last round is committed" in jobs.stop(made, "j") and made.client.stopped == ["j"]
    assert jobs.stop(made, "j") == "j has ended already: stopped" and made.client.stopped == ["j"]


# -- fetch ---------------------------------------------------------------------------------------------------------------


def sent(folder: Path, tmp_path: Path) -> str:
    """What `send` writes into its job's log."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom actors import onhead\nonhead.CHUNK, onhead.LETGO_S = 300, 0\n"
        "os.ftruncate = lambda *a: None\nonhead.send(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "noise\n" + done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "head" / "j"
    (made / "clients").mkdir(parents=True)
    (made / "config.yaml").write_text("name: j\n")
    (made / "clients" / "a.bin").write_bytes(os.urandom(3000))
    (made / ".lock").write_text("")
    return made


def test_fetch_brings_the_folder(cluster: Any, folder: Path, tmp_path: Path) -> None:
    made = cluster(job("j", "SUCCEEDED", 0), log=sent(folder, tmp_path))
    for _ in range(2):  # again over the first copy
        made.client.breaks = 1
        path = jobs.fetch(made, "j", tmp_path / "here")
        assert {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()} == {
            p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"
        }
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["lost", "changed", "cut"])
def test_a_folder_that_did_not_arrive_whole_is_not_there(
    cluster: Any, folder: Path, tmp_path: Path, fault: str
) -> None:
    lines = sent(folder, tmp_path).splitlines(keepends=True)
    if fault == "lost":
        del lines[3]
    elif fault == "changed":
        number, text = json.loads(lines[3].removeprefix(onhead.MARK))
        block = bytearray(base64.b64decode(text))
        block[7] ^= 1
        lines[3] = onhead.MARK + json.dumps([number, base64.b64encode(block).decode()]) + "\n"
    else:
        del lines[-1]
    made = cluster(job("j", "SUCCEEDED", 0), log="".join(lines))
    with pytest.raises(RunFailed, match=r"lost on the way|did not arrive as it was sent|stopped sending"):
        jobs.fetch(made, "j", tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_job_without_a_folder(cluster: Any, tmp_path: Path) -> None:
    made = cluster(job("j", "FAILED", 2), log=onhead.MARK + '{"missing": "/r/j"}\n')
    with pytest.raises(ConfigError, match=r"no run folder on the head \(/r/j\); see: rayfed logs j"):
        jobs.fetch(made, "j", tmp_path / "here")


def test_described_counts_a_studys_runs() -> None:
    study = load_config("quickstart")
    assert isinstance(study, Study) and isinstance(study.base, Config)
    about = jobs.described(study)
    assert about["runs"] == str(len(study.runs())) and about["method"].split(", ")[0] in about["method"]
