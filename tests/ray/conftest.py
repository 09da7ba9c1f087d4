"""Real local clusters: every test here is marked `ray`, has its own temp dir and ends only what it started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ray)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """An environment whose Ray lives in a short, fresh folder (socket paths are limited to 107 bytes)."""
    where = tempfile.mkdtemp(prefix="rf-", dir="/tmp")
    (Path(where) / "ray").mkdir()
    made = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    threads = {"OMP_NUM_THREADS": "1"}  # actors have one; the same bits need the same number
    yield {**made, **threads, "RAY_TMPDIR": where, "PYTHONUNBUFFERED": "1", "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(where, ignore_errors=True)


CONFIG: dict[str, Any] = {
    "name": "t",
    "seed": 3,
    "rounds": 8,
    "task": {
        "data": {"name": "synthetic:blobs", "examples": 1200, "classes": 4, "features": 8, "test": 100},
        "model": {"name": "mlp", "hidden": [16]},
    },
    "federation": {
        "clients": 40,
        "per_round": 16,
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "groups": {"kind": "label_permutation", "count": 2},
    },
    "local": {"epochs": 1, "batch_size": 8},
    "method": {"name": "scaffold"},
    "evaluate": {"every": 4},
    "resources": {"executor": "vmap", "cohort": 4, "actors": 2},
    "storage": {"snapshot_every": 3},
    "track": [],
}


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the test config with overrides (nested dicts merge) and return its path."""

    def write(name: str = "config.yaml", **changes: Any) -> Path:
        made = json.loads(json.dumps(CONFIG))
        for k, v in changes.items():
            made[k] = (
                {**made[k], **v} if isinstance(v, dict) and isinstance(made.get(k), dict) and "name" not in v else v
            )
        file = tmp_path / name
        file.write_text(yaml.safe_dump(made))
        return file

    return write


class Command:
    """`rayfed ...` as a user starts it, in a separate process."""

    def __init__(self, env: dict[str, str], *args: str):
        code = (
            "import sys\nfrom rayfed.cli import main\n"
            "try:\n    main()\nfinally:\n    print('torch in the driver:', 'torch' in sys.modules)"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *args],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self, timeout: float = 600) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, out

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.process.send_signal(signum)


@pytest.fixture
def rayfed(env: dict[str, str]) -> Iterator[Callable[..., Command]]:
    """Start commands; what still runs at the end of the test is ended."""
    started: list[Command] = []

    def start(*args: object) -> Command:
        started.append(Command(env, *map(str, args)))
        return started[-1]

    yield start
    for c in started:
        if c.process.poll() is None:
            c.kill()
            c.process.wait()


def until(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Wait for a truthy value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = condition()
        except (OSError, ValueError, IndexError, StopIteration):
            value = None
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"did not happen in {seconds} s: {what}")


def only_run(out: Path) -> Path:
    """The one run folder under `out`."""
    (found,) = [p for p in out.iterdir() if not p.name.startswith(".")]
    return found


def at_round(out: Path, r: int) -> Path:
    """Wait until the run under `out` has committed round r."""
    until(lambda: json.loads((only_run(out) / "state.json").read_text())["round"] >= r, f"round {r}")
    return only_run(out)


def placed(folder: Path) -> dict[str, Any]:
    """The newest `placed` event: pids of the server and the client actors."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [e for e in events if e["kind"] == "placed"][-1]


def of_ray(env: dict[str, str], word: str) -> int | None:
    """The newest process of this test's Ray whose program has that name."""
    found = [
        (p.info["create_time"], p.pid)
        for p in psutil.process_iter(["cmdline", "create_time"])
        if (line := p.info["cmdline"]) and Path(line[0]).name == word and any(env["RAY_TMPDIR"] in a for a in line)
    ]
    return max(found)[1] if found else None


VOLATILE = ("time/", "clients/per_second", "ray/", "actors/")


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The run's rows without what depends on the clock or on where things ran."""
    from rayfed.api import Run

    rows = Run(folder).metrics().to_pylist()
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in rows]


NODES = """
import sys, ray
from ray.cluster_utils import Cluster
nodes = [int(n) for n in sys.argv[1:]]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": nodes[0], "include_dashboard": False})
for n in nodes[1:]:
    cluster.add_node(num_cpus=n)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
for line in sys.stdin:
    if line.startswith("end node"):
        cluster.remove_node(sorted(cluster.worker_nodes, key=lambda n: n.node_id)[int(line.split()[-1])], allow_graceful=False)
        print("ended", flush=True)
    else:
        break
cluster.shutdown()
"""


class Nodes:
    """A Ray of several nodes on this machine, in a separate process.

    It reports no metrics: while a placement group waits for the room of a node that is gone, Ray 2.60's GCS tries again without
    a pause (ray-project/ray#65007), and its agent would take the other core to sum the times of these tries.
    """

    def __init__(self, env: dict[str, str], cpus: tuple[int, ...]):
        env = {**env, "RAY_metrics_report_interval_ms": "3600000"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NODES, *map(str, cpus)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("address ")), "")
        assert line, "no cluster came up"
        self.address = line.split()[1]

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def end_node(self, which: int) -> None:
        """Kill a worker node's raylet and all that runs on it."""
        assert self.process.stdout is not None
        self.say(f"end node {which}")
        assert any(line.startswith("ended") for line in self.process.stdout)

    def close(self) -> None:
        self.say("end")
        self.process.wait(60)


@pytest.fixture
def nodes(env: dict[str, str]) -> Iterator[Callable[..., Nodes]]:
    """Start a local cluster: `nodes(1, 1, 1)` has three nodes of one CPU each."""
    started: list[Nodes] = []

    def start(*cpus: int) -> Nodes:
        started.append(Nodes(env, cpus))
        return started[-1]

    yield start
    for c in started:
        c.close()
