"""kill -9 of each process of a run, Ctrl-C, a raising client: nothing is lost, nothing is doubled."""

from __future__ import annotations

import json
import os
import signal
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.ray.conftest import at_round, numbers, of_ray, only_run, placed, until
from tests.tiny_lm import make_data, make_lm

LONG = {"rounds": 200, "evaluate": {"every": 50}}  # some seconds: long enough to be hit in mid-run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The rows of the uninterrupted run, computed without Ray."""
    import yaml

    from rayfed.config.load import load_config
    from rayfed.launch.start import run_local
    from tests.ray.conftest import CONFIG

    out = tmp_path_factory.mktemp("reference")
    made = {**CONFIG, **LONG}
    return numbers(run_local(load_config(yaml.safe_load(yaml.safe_dump(made))), out=out).path)


def start(rayfed, config, out, **more):
    return rayfed("run", config(**{**LONG, **more}), "--out", out, "--address", "local")


def test_a_killed_client_actor_changes_no_number(rayfed, config, reference, tmp_path):
    command = start(rayfed, config, tmp_path / "o")
    folder = at_round(tmp_path / "o", 3)
    os.kill(placed(folder)["clients"][0]["pid"], signal.SIGKILL)
    code, out = command.wait()
    assert code == 0, out
    assert numbers(folder) == reference
    from rayfed.api import Run

    assert Run(folder).metrics()["actors/restarts"].to_pylist()[-1] == 1


WHERE = '''
    import os
    from pathlib import Path

    from rayfed.methods.scaffold import Scaffold
    from rayfed.visits import Visit, visit

    class Seen(Scaffold):
        """SCAFFOLD whose visits leave the number of their process, and that of what they are."""
        @visit
        def train(self, task) -> Visit:
            inner, folder = super().train(task), Path(__file__).parent / "seen"
            def end(*given):
                folder.mkdir(exist_ok=True)
                (folder / str(os.getpid())).touch()
                return inner.end(*given)
            return inner._replace(end=end)
'''


def test_visits_in_the_servers_process_and_an_idle_actor_that_is_killed(rayfed, config, tmp_path):
    """Client states and all; the same numbers as without Ray; who died while nobody asked it is replaced and counted."""
    file = tmp_path / "where.py"
    file.write_text(textwrap.dedent(WHERE))
    written = config(
        rounds=800, evaluate={"every": 400}, method={"name": f"{file}:Seen"},
        resources={"executor": "vmap", "cohort": 16, "actors": 2, "visits": "server"},
    )  # fmt: skip
    command = rayfed("run", written, "--out", tmp_path / "ray", "--address", "local")
    folder = at_round(tmp_path / "ray", 3)
    there = placed(folder)
    os.kill(there["clients"][0]["pid"], signal.SIGKILL)
    code, out = command.wait()
    assert code == 0, out
    seen = {
        p.name for p in (tmp_path / "seen").iterdir()
    }  # its visit was tried before the start, in a process of its own
    assert str(there["server"]) in seen and not seen & {str(c["pid"]) for c in there["clients"]}
    from rayfed.api import Run

    rows = Run(folder).metrics()
    assert not any(rows["ray/bytes/up"].to_pylist()[:398])  # nothing has moved
    restarts = rows["actors/restarts"].to_pylist()
    assert restarts[0] == 0 and restarts[398] == restarts[-1] == 1  # before an evaluation would have asked it
    code, out = rayfed("run", written, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, out
    assert numbers(folder) == numbers(only_run(tmp_path / "local"))


@pytest.mark.parametrize("victim", ["driver", "server"])
def test_a_killed_driver_or_server_is_resumed_without_loss(rayfed, config, reference, tmp_path, victim):
    command = start(rayfed, config, tmp_path / "o")
    folder = at_round(tmp_path / "o", 4)
    os.kill(command.process.pid if victim == "driver" else placed(folder)["server"], signal.SIGKILL)
    code, out = command.wait()
    if victim == "server":
        assert code == 4 and f"rayfed resume {folder}" in out, out
    else:
        assert code == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    code, out = rayfed(
        "resume", folder, "--address", "local"
    ).wait()  # at once: what is left of the old run may still live
    assert code == 0, out
    assert numbers(folder) == reference


SLOW = '''
    import time
    from pathlib import Path

    from rayfed.methods.fedsa_lora import FedSALoRA

    class Slow(FedSALoRA):
        """FedSA-LoRA whose rounds take their time while a file `slow` lies beside it: no machine is done before it is hit."""
        def round(self, state, fed, task):
            if Path(__file__).with_name("slow").exists():
                time.sleep(0.1)
            return super().round(state, fed, task)
'''


@pytest.mark.slow
def test_a_language_model_survives_the_death_of_each_process(rayfed, config, env, tmp_path):
    """One run of FedSA-LoRA, whose clients keep factors of their own, is hit five times; numbers and adapters are the plain ones."""
    make_lm(tmp_path / "lm", "gpt2")
    make_data(tmp_path / "data")
    (tmp_path / "method.py").write_text(textwrap.dedent(SLOW))
    (tmp_path / "slow").touch()
    written = config(
        rounds=160,
        task={
            "data": {"name": f"parquet:{tmp_path / 'data'}", "length": 32},
            "model": {"name": f"hf:{tmp_path / 'lm'}"},
        },
        adapter={"kind": "lora", "rank": 2, "targets": ["c_attn"]},
        federation={"clients": 6, "per_round": 4, "groups": {"kind": "none"}, "partition": {"kind": "dirichlet", "alpha": 1.0}},
        local={"epochs": None, "steps": 2, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}},
        method={"name": f"{tmp_path / 'method.py'}:Slow"}, evaluate={"every": 40}, resources={"cohort": 1}, storage={"snapshot_every": 4},
    )  # fmt: skip
    command, folder, reached = rayfed("run", written, "--out", tmp_path / "o", "--address", "local"), None, 0
    for victim in ("client", "server", "driver", "raylet", "gcs_server"):
        folder = at_round(tmp_path / "o", reached + 5)
        there = placed(folder)
        found = {"client": there["clients"][0]["pid"], "server": there["server"], "driver": command.process.pid}
        os.kill(found.get(victim) or of_ray(env, victim), signal.SIGKILL)
        if victim == "client":  # the run goes on
            events = folder / "events.jsonl"
            until(lambda events=events: "actor restarted" in events.read_text(), "the actor is replaced")
            reached = len(numbers(folder))
            continue
        code, out = command.wait()
        assert code == (-signal.SIGKILL if victim == "driver" else 4), (victim, out)
        assert victim == "driver" or (f"rayfed resume {folder}" in out and "Traceback" not in out), (victim, out)
        reached = len(numbers(folder))
        assert reached < 160, "the run was over before it was hit"
        command = rayfed("resume", folder, "--address", "local")
    (tmp_path / "slow").unlink()
    code, out = command.wait()
    assert code == 0, out
    code, out = rayfed("run", written, "--out", tmp_path / "plain", "--local").wait()
    assert code == 0, out
    plain = only_run(tmp_path / "plain")
    assert numbers(folder) == numbers(plain) and len(numbers(plain)) == 160
    from rayfed.api import Run

    for client in range(6):
        made = [Run(f).save_adapter(client, tmp_path / f"{i}-{client}") for i, f in enumerate((folder, plain))]
        assert len({(m / "adapter_model.safetensors").read_bytes() for m in made}) == 1, (
            f"the adapter of client {client}"
        )


def test_an_old_server_that_still_lives_writes_nothing_after_the_resume(config, reference, tmp_path):
    """The old writer commits on, a new one takes over in mid-run: the old one is fenced off, the rows are right."""
    import threading

    from rayfed.config.load import load_config
    from rayfed.engine.pool import LocalPool
    from rayfed.engine.runner import Runner
    from rayfed.errors import Fenced
    from rayfed.launch.start import resume_local
    from rayfed.partition import build
    from rayfed.storage.owner import Owner
    from rayfed.storage.run_folder import RunFolder

    c = load_config(config(**LONG))
    gone = Owner(Owner.me().host, 2**22 + 1, 0.0)  # a driver that is dead while its server is not
    folder = RunFolder.create(tmp_path / "o", c.to_dict(), owner=gone)
    go, errors = threading.Event(), []

    def wait_in_round_six() -> None:
        if runner.status["round"] == 5:
            go.wait(60)

    runner = Runner(c, build(c), LocalPool(), folder, before_commit=wait_in_round_six)

    def old() -> None:
        try:
            runner.execute()
        except Fenced as e:
            errors.append(e)

    thread = threading.Thread(target=old)
    thread.start()
    until(lambda: runner.status["round"] == 5, "round 5")
    finished = resume_local(folder.path)
    go.set()
    thread.join(60)
    assert len(errors) == 1, "the old server must be stopped by the fence"
    assert finished.status == "done" and numbers(folder.path) == reference


def test_a_second_driver_is_refused_while_the_first_lives(rayfed, config, tmp_path):
    command = start(rayfed, config, tmp_path / "o", rounds=100_000)  # ended by the test
    folder = at_round(tmp_path / "o", 1)
    code, out = rayfed("resume", folder, "--local").wait()
    assert code == 2 and str(command.process.pid) in out, out
    command.kill(signal.SIGTERM)
    assert command.wait()[0] == 143


def test_ctrl_c_commits_the_round_and_exits_130(rayfed, config, reference, tmp_path):
    command = start(rayfed, config, tmp_path / "o")
    folder = at_round(tmp_path / "o", 2)
    command.kill(signal.SIGINT)
    code, out = command.wait()
    assert code == 130 and f"rayfed resume {folder}" in out, out
    stopped = len(numbers(folder))
    assert 2 <= stopped < LONG["rounds"]
    code, out = rayfed("resume", folder, "--local").wait()
    assert code == 0, out
    assert numbers(folder) == reference


def test_nothing_of_ray_is_left_behind(rayfed, config, env, tmp_path):
    code, out = rayfed("run", config(rounds=1), "--out", tmp_path / "o", "--address", "local").wait()
    assert code == 0, out

    def left():
        return [
            p for p in psutil.process_iter(["cmdline"]) if any(env["RAY_TMPDIR"] in a for a in p.info["cmdline"] or [])
        ]

    until(lambda: not left(), "all Ray processes of the run have ended", 30)


METHOD = '''
    from rayfed.methods.fedavg import FedAvg
    from rayfed.training import sgd_visit
    from rayfed.visits import visit

    class Moody(FedAvg):
        """FedAvg with a client that raises."""
        @visit
        def train(self, task):
            inner = sgd_visit(task.loss, self.local)
            def begin(client):
                if int(client.info.client) == 7:
                    raise ValueError("client seven has a bad day")
                return inner.begin(client)
            return inner._replace(begin=begin, vectorize="it looks at the client's number")
'''


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_a_client_that_raises(rayfed, config, tmp_path, policy):
    file = Path(tmp_path / "moody.py")
    file.write_text(textwrap.dedent(METHOD))
    written = config(
        method={"name": f"{file}:Moody"}, resources={"executor": "loop"}, failures={"client_error": policy}, rounds=2,
        federation={"per_round": 40, "holdout": {"kind": "none"}},
    )  # fmt: skip
    code, out = rayfed("run", written, "--out", tmp_path / "o", "--address", "local").wait()
    folder = only_run(tmp_path / "o")
    if policy == "raise":
        assert code == 4, out
        for piece in (
            "client 7",
            "round 1",
            "client seven has a bad day",
            "moody.py",
            "It would fail there again",
            f"rayfed run {folder}/config.yaml --local --set resources.executor=debug",
        ):
            assert piece in out, (piece, out)
        assert "rayfed resume" not in out  # it has committed nothing, and would come to the same client
        assert json.loads((folder / "state.json").read_text())["status"] == "failed"
    else:
        assert code == 0, out
        assert [r["clients/dropped"] for r in numbers(folder)] == [1, 1]


LETHAL = '''
    import os

    from rayfed.methods.fedavg import FedAvg
    from rayfed.training import sgd_visit
    from rayfed.visits import visit

    class Lethal(FedAvg):
        """FedAvg with a client that ends every process that plays it, from round 3 on."""
        @visit
        def train(self, task):
            inner = sgd_visit(task.loss, self.local)
            def begin(client):
                if int(client.info.client) == 7 and int(client.info.round) >= 3:
                    os._exit(1)
                return inner.begin(client)
            return inner._replace(begin=begin, vectorize="it looks at the client's number")
'''


def test_a_call_that_ends_every_actor_ends_the_run(rayfed, config, tmp_path):
    """After as many actors as `failures.actor_death.retries` allows, with the rounds before it kept."""
    file = Path(tmp_path / "lethal.py")
    file.write_text(textwrap.dedent(LETHAL))
    written = config(
        method={"name": f"{file}:Lethal"}, resources={"executor": "loop"}, failures={"actor_death": {"retries": 1}}, rounds=4,
        federation={"per_round": 40, "holdout": {"kind": "none"}}, storage={"snapshot_every": 1},
    )  # fmt: skip
    code, out = rayfed("run", written, "--out", tmp_path / "o", "--address", "local").wait()
    folder = only_run(tmp_path / "o")
    assert code == 4 and f"rayfed resume {folder}" in out and "Traceback" not in out, out
    assert [r["round"] for r in numbers(folder)] == [1, 2]
    events = [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events.count("actor restarted") == 1
