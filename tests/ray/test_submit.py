"""Jobs on a real head with a token, reached as from another machine: only through its dashboard's port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray.conftest import Command, numbers, until

pytestmark = pytest.mark.slow  # their own clusters: minutes on two cores

TOKEN = "0123456789abcdef" * 2


def ports(n: int) -> list[int]:
    taken = [socket.socket() for _ in range(n)]
    for s in taken:
        s.bind(("127.0.0.1", 0))
    found = [s.getsockname()[1] for s in taken]
    for s in taken:
        s.close()
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, Any]]:
    """A separate head: folder, ports, token, home. Ends with what it started."""
    where = Path(tempfile.mkdtemp(prefix="rfh-", dir="/tmp"))
    (where / "ray").mkdir()
    (where / "home").mkdir()
    gcs, board, agent, grpc, client, metrics = ports(6)
    made = {k: v for k, v in os.environ.items() if not k.startswith("RAY") and k != "PYTHONPATH"}
    env = {**made, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    bin = Path(sys.executable).parent
    there = {**env, "RAY_TMPDIR": str(where), "HOME": str(where / "home"), "PATH": f"{bin}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [
            str(bin / "ray"), "start", "--head", "--block", f"--port={gcs}", "--dashboard-host=127.0.0.1",
            "--node-ip-address=127.0.0.1", f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}", f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
            "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2", "--num-gpus=0", "--disable-usage-stats",
        ],
        env=there, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip

    def ready() -> bool:
        with socket.create_connection(("127.0.0.1", board), timeout=1):
            return True

    try:
        until(ready, "the head answers", 180)
        address = f"http://127.0.0.1:{board}"
        yield {"env": {**env, "RAY_ADDRESS": address}, "address": address, "home": where / "home"}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        for p in psutil.process_iter(["cmdline", "environ"]):
            if str(where) in " ".join(p.info["cmdline"] or ()) or (p.info["environ"] or {}).get("RAY_TMPDIR") == str(
                where
            ):
                p.kill()
        shutil.rmtree(where, ignore_errors=True)


@pytest.fixture
def rayfed(head: dict[str, Any]) -> Callable[..., tuple[int, str]]:
    def call(*args: object, **env: str) -> tuple[int, str]:
        return Command({**head["env"], **env}, *map(str, args)).wait()

    return call


def value(out: str) -> Any:
    """The JSON that a command printed, within other lines."""
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def test_a_job_gives_the_numbers_of_a_run_here(rayfed, config, head, tmp_path):
    """Submit, follow, list, state, logs and fetch: own method file and all, with nothing shared but the port."""
    (tmp_path / "own.py").write_text(
        "from rayfed.methods.scaffold import Scaffold\n\n\nclass Mine(Scaffold):\n    '''Own.'''\n"
    )
    file = config(method={"name": f"{tmp_path / 'own.py'}:Mine"})
    code, out = rayfed("submit", "run", file)
    assert code == 0, out
    assert "round 8/8" in out and "report: " in out and "job_manager" not in out
    name = next(line.split()[1] for line in out.splitlines() if line.startswith("job "))
    code, out = rayfed("status")
    assert code == 0 and name in out and "16 of 40 clients  round 8/8  done" in out
    code, out = rayfed("status", name)
    assert code == 0 and "done" in out and str(head["home"] / "runs" / name) in out
    code, out = rayfed("fetch", name, "--out", tmp_path / "got")
    assert code == 0, out
    got, there = tmp_path / "got" / name, head["home"] / "runs" / name
    files = {
        p.relative_to(there): p.read_bytes() for p in there.rglob("*") if p.is_file() and not p.name.startswith(".")
    }
    assert {p.relative_to(got): p.read_bytes() for p in got.rglob("*") if p.is_file()} == files
    code, out = rayfed("run", file, "--local", "--out", tmp_path / "here")
    assert code == 0, out
    assert numbers(next((tmp_path / "here").iterdir())) == numbers(got)


def test_stop_commits_the_round_and_stop_now_does_not_wait(rayfed, config, head, tmp_path):
    """The client of `--no-wait` is gone while the job runs."""
    for now in (False, True):
        code, out = rayfed("submit", "run", config(rounds=100000, evaluate={"every": 50000}), "--no-wait", "--json")
        assert code == 0, out
        name = value(out)["job"]
        folder = head["home"] / "runs" / name
        until(lambda f=folder: json.loads((f / "state.json").read_text())["round"] >= 2, "two rounds")
        code, out = rayfed("stop", name, *(["--now"] if now else []))
        assert code == 0 and "has stopped" in out, out
        events = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
        if not now:
            assert events[-1] == "stopped"
        code, out = rayfed("logs", "-f", name)
        assert code == 143 and "round " in out
    code, out = rayfed("fetch", name, "--out", tmp_path)
    assert code == 0 and not (tmp_path / name / "summary.json").exists(), out


def test_a_stopped_job_is_continued(rayfed, config, head, tmp_path):
    """A run whose own method and data travelled, made longer; then a sweep: each in the folder where it was."""
    (tmp_path / "own.py").write_text(
        "from rayfed.methods.scaffold import Scaffold\n\n\nclass Mine(Scaffold):\n    '''Own.'''\n"
    )
    (tmp_path / "rows").mkdir()
    columns: dict[str, Any] = {f"x{i}": [float((7 * k + i) % 5) for k in range(600)] for i in range(4)}
    pq.write_table(pa.table({**columns, "label": [k % 3 for k in range(600)]}), tmp_path / "rows" / "train.parquet")
    own = {"name": f"{tmp_path / 'own.py'}:Mine"}
    data = {"name": f"parquet:{tmp_path / 'rows'}", "features": ["x0", "x1", "x2", "x3"]}
    task = {"data": data, "model": {"name": "mlp", "hidden": [8]}}
    file = config(rounds=100000, method=own, task=task, evaluate={"every": 50000})
    code, out = rayfed("submit", "run", file, "--no-wait", "--json")
    assert code == 0, out
    name = value(out)["job"]
    folder = head["home"] / "runs" / name
    until(lambda: json.loads((folder / "state.json").read_text())["round"] >= 2, "two rounds")
    code, out = rayfed("submit", "resume", name)
    assert code == 2 and f"rayfed stop {name}" in out, out
    code, out = rayfed("stop", name)
    assert code == 0, out
    reached = json.loads((folder / "state.json").read_text())["round"]
    code, out = rayfed("submit", "resume", name, "--set", f"rounds={reached + 3}")
    assert code == 0 and f"job {name}-2 on" in out and f"round {reached + 3}/{reached + 3}" in out, out
    code, out = rayfed("status", f"{name}-2")
    assert code == 0 and str(folder) in out, out
    code, out = rayfed("fetch", f"{name}-2", "--out", tmp_path / "got")
    assert code == 0 and len(numbers(tmp_path / "got" / name)) == reached + 3, out
    code, out = rayfed(
        "submit", "sweep", "participation", config(rounds=60, evaluate={"every": 2}), "--no-wait", "--json"
    )
    assert code == 0, out
    name = value(out)["job"]
    folder = head["home"] / "runs" / name
    until(lambda: (folder / "trials" / "00001" / "rows.jsonl").exists(), "the second trial")
    code, out = rayfed("stop", name)
    assert code == 0 and json.loads((folder / "summary.json").read_text())["trials"]["complete"] < 3, out
    code, out = rayfed("submit", "resume", f"runs/{name}")
    assert code == 0 and "sweep.html" in out, out
    assert json.loads((folder / "summary.json").read_text())["trials"]["complete"] == 3


def test_what_cannot_be_is_one_sentence_and_its_code(rayfed, config, tmp_path):
    code, out = rayfed("submit", "run", config(resources={"gpus_per_actor": 1}))
    assert code == 3 and "There is no GPU" in out
    code, out = rayfed("status", RAY_AUTH_TOKEN="f" * 32)
    assert code == 3 and "refuses this token" in out and "Traceback" not in out
    (tmp_path / "nobody").mkdir()
    code, out = rayfed("status", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert code == 3 and "asks for a token" in out
    code, out = rayfed("status", "--address", "http://127.0.0.1:1")
    assert code == 3 and "no Ray dashboard answers" in out
    code, out = rayfed("fetch", "nothing")
    assert code == 2 and "has no job 'nothing'" in out
