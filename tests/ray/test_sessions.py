"""Which Ray a run computes on: the user's own, a task's, a trial's; and what becomes of a run whose Ray dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.ray.conftest import at_round, of_ray, only_run, placed, until

SMALL = {"rounds": 3, "evaluate": {"every": 3}, "resources": {"executor": "loop", "actors": "auto"}}


def script(env, text, *args):
    """Run a user's script; returns what it printed as JSON in its last line."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, args)], capture_output=True, text=True, timeout=300,
        env={**env, "PYTHONPATH": os.pathsep.join([root, env.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BEGIN = """
    import json, sys, time
    import ray
    import rayfed

    ray.init(num_cpus=3, include_dashboard=False)
    address = ray.get_runtime_context().gcs_address
    config, out = sys.argv[1:3]

    @ray.remote(num_cpus=0)
    class Counter:
        def __init__(self): self.n = 0
        def add(self): self.n += 1; return self.n

    counter, found = Counter.remote(), {}
    ray.get(counter.add.remote())
"""

SCRIPT = """
    found["runs"] = [rayfed.run(config, out=out).summary["status"] for _ in range(2)]
"""

TASKS = """
    from rayfed.errors import PlacementError

    @ray.remote(num_cpus=1)
    def in_a_task(seconds, sets):
        import actors.driver
        import rayfed
        actors.driver.SOON_S = 1
        actors.driver.FREE_S = seconds
        try:
            run = rayfed.run(config, out=f"{out}/task", sets=sets)
        except PlacementError as error:
            return str(error)
        return run.summary["status"], len(run.metrics()), ray.get_runtime_context().gcs_address

    status, rounds, there = ray.get(in_a_task.remote(30, []))
    found["task"] = [status, rounds, there == address]
    hold = [Counter.options(num_cpus=1).remote() for _ in range(2)]
    ray.get([h.add.remote() for h in hold])
    found["refused"] = ray.get(in_a_task.remote(1, ["resources.actors=3"]))
    del hold

    from ray import tune

    def trial(about):
        run = rayfed.run(config, out=f"{out}/trials", sets={"local.optimizer.lr": about["lr"]})
        tune.report({"rounds": run.summary["rounds"]})

    where = tune.RunConfig(storage_path=f"{out}/tune", verbose=0)
    results = tune.Tuner(trial, param_space={"lr": tune.grid_search([0.1, 0.2])}, run_config=where).fit()
    found["trials"] = [str(e) for e in results.errors] + [r.metrics["rounds"] for r in results]
"""

END = """
    found["there"] = ray.is_initialized() and ray.get(counter.add.remote())
    end = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 3 and time.monotonic() < end:
        time.sleep(0.2)
    found["free"] = ray.available_resources().get("CPU")
    print(json.dumps(found))
"""


def test_the_ray_of_a_users_script_is_used_and_left_alone(config, env, tmp_path):
    found = script(env, BEGIN + SCRIPT + END, config(**SMALL), tmp_path)
    assert found["runs"] == ["done", "done"]
    assert found["there"] == 2, "the user's actor lives"
    assert found["free"] == 3, "nothing of the runs is left"


@pytest.mark.slow
def test_tasks_and_trials_join_the_ray_that_they_run_on(config, env, tmp_path):
    found = script(env, BEGIN + TASKS + END, config(**SMALL), tmp_path)
    assert found["task"] == ["done", 3, True]
    assert "3 actors of 1 CPU" in found["refused"] and "the task that starts this run holds 1 CPU" in found["refused"]
    assert found["trials"] == [3, 3]
    assert (found["there"], found["free"]) == (2, 3)


LONG = {"rounds": 100_000, "evaluate": {"every": 50}}


@pytest.mark.parametrize("victim", ["gcs_server", pytest.param("raylet", marks=pytest.mark.slow)])
def test_a_head_or_a_node_that_dies_ends_the_run_with_how_to_go_on(rayfed, config, env, tmp_path, victim):
    command = rayfed("run", config(**LONG), "--out", tmp_path / "o", "--address", "local")
    folder = at_round(tmp_path / "o", 3)
    os.kill(until(lambda: of_ray(env, victim), victim), signal.SIGKILL)
    code, out = command.wait()  # Ray itself would end the process after a minute, with another code and no word of ours
    assert code == 4 and f"rayfed resume {folder}" in out and "of Ray at 127.0.0.1:" in out, out
    assert "Traceback" not in out


SLOW_END = '''
    import os, signal, time
    from pathlib import Path

    import psutil

    from rayfed.methods.fedavg import FedAvg

    class SlowEnd(FedAvg):
        """FedAvg whose first end, behind the last round, kills the head of Ray and takes long."""
        def experts(self, state):
            mark = Path(__file__).with_name("killed")
            if not mark.exists():
                mark.touch()
                for p in psutil.process_iter(["cmdline"]):
                    line = p.info["cmdline"] or []
                    if line and Path(line[0]).name == "gcs_server" and any(os.environ["RAY_TMPDIR"] in a for a in line):
                        os.kill(p.pid, signal.SIGKILL)
                time.sleep(120)
            return super().experts(state)
'''


def test_a_run_whose_last_round_is_committed_when_the_head_dies_is_done(rayfed, config, env, tmp_path):
    file = tmp_path / "slow_end.py"
    file.write_text(textwrap.dedent(SLOW_END))
    written = config(**SMALL, method={"name": f"{file}:SlowEnd"})
    code, out = rayfed("run", written, "--out", tmp_path / "o", "--address", "local").wait()
    assert code == 0 and (tmp_path / "killed").exists(), out
    folder = only_run(tmp_path / "o")
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 3
    assert (folder / "model" / "model.safetensors").is_file() and (folder / "report.html").is_file()


EXITS = '''
    import sys

    from rayfed.methods.fedavg import FedAvg
    from rayfed.training import sgd_visit
    from rayfed.visits import visit

    class Exits(FedAvg):
        """FedAvg with two clients that leave."""
        @visit
        def train(self, task):
            inner = sgd_visit(task.loss, self.local)
            def begin(client):
                if int(client.info.client) == 7:
                    sys.exit("client seven has had enough")
                if int(client.info.client) == 8:
                    raise KeyboardInterrupt
                return inner.begin(client)
            return inner._replace(begin=begin, vectorize="it looks at the client's number")
'''


@pytest.mark.slow
def test_a_client_that_exits_is_a_client_that_fails(rayfed, config, tmp_path):
    """It is dropped as the config says, and no actor dies with it."""
    file = tmp_path / "exits.py"
    file.write_text(textwrap.dedent(EXITS))
    written = config(
        method={"name": f"{file}:Exits"}, resources={"executor": "loop"}, failures={"client_error": "drop"}, rounds=2,
        federation={"per_round": 40, "holdout": {"kind": "none"}},
    )  # fmt: skip
    code, out = rayfed("run", written, "--out", tmp_path / "o", "--address", "local").wait()
    assert code == 0, out
    from rayfed.api import Run

    rows = Run(only_run(tmp_path / "o")).metrics().to_pylist()
    assert [r["clients/dropped"] for r in rows] == [2, 2]
    assert [r["actors/restarts"] for r in rows] == [0, 0]


def test_a_local_ray_listens_on_this_machine_alone_and_its_token_is_the_users(rayfed, config, env, tmp_path):
    env.update(HOME=str(tmp_path / "home"), RAY_AUTH_MODE="token")
    (tmp_path / "home").mkdir()
    command = rayfed("run", config(**LONG), "--out", tmp_path / "o", "--address", "local")
    folder = at_round(tmp_path / "o", 1)
    there = placed(folder)
    pids = {there["server"], *(c["pid"] for c in there["clients"]), command.process.pid}
    for p in psutil.process_iter(["cmdline"]):
        if any(env["RAY_TMPDIR"] in a for a in p.info["cmdline"] or []):
            pids.add(p.pid)
    listening = {
        c.laddr.ip.removeprefix("::ffff:")
        for pid in pids
        for c in psutil.Process(pid).net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    command.kill(signal.SIGTERM)
    command.wait()
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("service", ["another", "dead", "none"])
def test_an_address_without_a_head_is_refused(rayfed, config, tmp_path, service):
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        if service != "another":
            s.close()
        address = "nowhere.invalid:6379" if service == "none" else f"127.0.0.1:{port}"
        code, out = rayfed("run", config(), "--out", tmp_path / "o", "--address", address).wait()
    assert code == 3 and f"--address {address}: no Ray answers there" in out and "Traceback" not in out, out
    assert not (tmp_path / "o").exists()


DOCTOR = """
    import json
    from actors.health import check_ray

    found = check_ray("local")
    import ray
    print(json.dumps([found, ray.is_initialized(), check_ray("127.0.0.1:1")]))
"""


def test_doctor_computes_on_a_ray_of_its_own(env):
    """And leaves none behind; where no Ray answers, that is what it finds."""
    (started, node), connected, (refused,) = script(env, DOCTOR)
    assert (started[1], node[1]) == ("ok", "ok") and "1 node," in started[2] and not connected
    assert refused[1] == "wrong" and "no Ray answers there" in refused[2]
