"""How rayfed grows: a round, an evaluation, the start and memory against clients per round, population, model size, actors, nodes, client
state and time.

    python benchmarks/scale.py [--curves clients,population,size,actors,nodes,state,soak,events] [--tiny] [--out DIR]

Every point is a separate `rayfed run`, two client actors of one thread where nothing else is said. Writes benchmarks/scale.json,
benchmarks/SCALE.md and benchmarks/soak.png, unless `--tiny` (sizes that only show that all of it works) or `--out DIR`.
Curves that are not asked for keep what a scale.json in the output folder has of them.

The data is one set of rows by rule (`rows` below), the same for every population and dealt evenly; a visit is 5 steps of 2
examples, whatever a client holds, so that populations differ in nothing else. Evaluation is that of the defaults: every fifth round and
the last, every client that has rows of its own to be scored on (here none has), the global model on 1,000 pooled rows. clients: 10 to
10,000 a round of 20,000. population: 1,000 to 1,000,000, 1,000 a round. size: MLPs of 1e4 to 1e8 parameters, 4 clients a round.
actors: 1, 2, 4, the last on half a CPU each. nodes: 1 to 4 nodes of `ray.cluster_utils.Cluster` on this machine, an actor on each.
state: SCAFFOLD with 100,000 clients that each keep 100 kB, a snapshot every round; killed and resumed on the way, and resumed at the
end. soak: SCAFFOLD, 500 rounds of 200 of 1,000 clients. events: FedBuff with 1,000 of 100,000 devices at work, whose speeds, bandwidths and
stays are those of the constructed traces; 1 to 1,000 replies for a step, beside a synchronous round of 1,000, and one run ten times as
long.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
CURVES = ("clients", "population", "size", "actors", "nodes", "state", "soak", "events")
SKIPPED = 2  # first rounds, in which kernels and processes warm up
FEATURES, CLASSES = 16, 10


def rows(seed: int, *, examples: int) -> Any:
    """Return the data of every run: Gaussian blobs, drawn in float32 and in place, since the set is large."""
    from rayfed.data import Dataset, Part

    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(CLASSES, FEATURES)).astype(np.float32)

    def draw(n: int) -> Part:
        y = rng.integers(0, CLASSES, n)
        x = rng.standard_normal((n, FEATURES), np.float32)
        x += centres[y]
        return Part(x, y)

    return Dataset("rows", draw(examples), draw(1000), CLASSES, tuple(map(str, range(CLASSES))), "tabular")


def parameters(hidden: Sequence[int]) -> int:
    """Count the parameters of the MLP with these hidden layers."""
    sizes = [FEATURES, *hidden, CLASSES]
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def width(wanted: float) -> int:
    """Return the width of two hidden layers that have about `wanted` parameters."""
    return max(1, round(np.sqrt((FEATURES + CLASSES + 2) ** 2 / 4 + wanted) - (FEATURES + CLASSES + 2) / 2))


def config(
    clients: int,
    per_round: int,
    rounds: int,
    *,
    examples: int,
    hidden: Sequence[int] = (64,),
    method: Any = "fedavg",
    actors: int = 2,
    **more: Any,
) -> dict[str, Any]:
    """Return the config of one run; more: whole sections, or parts of `federation` and `resources`."""
    made = {
        "name": "scale", "rounds": rounds,
        "task": {
            "data": {"name": f"{Path(__file__).resolve()}:rows", "examples": examples},
            "model": {"name": "mlp", "hidden": list(hidden)},
        },
        "federation": {
            "clients": clients, "per_round": per_round, "partition": {"kind": "iid"}, "split": {"test": 0.0},
            **more.pop("federation", {}),
        },
        "local": {"steps": 5, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.05}},
        "method": method,
        "resources": {"actors": actors, "executor": "vmap", **more.pop("resources", {})}, "track": [],
    }  # fmt: skip
    return made | more


# -- one run -----------------------------------------------------------------------------------------------------------


class Command:
    """A `rayfed` command, and what all its processes use."""

    def __init__(self, args: Sequence[str], where: Path, *, every: float = 0.5, store: bool = False, mark: str = ""):
        from watch import MARK, Watch

        self.mark, self.log = mark or uuid.uuid4().hex, where / "log"
        self.shared = bool(mark)  # with the Ray of several nodes, which is measured too and ends by itself
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= {MARK: self.mark, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(where), "RAY_AUTH_MODE": "disabled"}
        self.watch = Watch(self.mark, every, ObjectStore() if store else None)
        self.began = time.time()
        self.watch.start()
        rayfed = str(Path(sys.executable).parent / "rayfed")
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen([rayfed, *args], env=environment, stdout=log, stderr=log, cwd=where)

    def end(self, kill: bool = False) -> None:
        """Wait for it, or end the driver as a power cut would."""
        from watch import end_processes

        if kill:
            self.process.send_signal(signal.SIGKILL)
        code = self.process.wait()
        left = self.watch.end()
        if kill:
            psutil.wait_procs([psutil.Process(p) for p in left if psutil.pid_exists(p)], timeout=60)
        if not self.shared:
            end_processes(left, self.mark)
        if code and not kill:
            sys.exit(f"rayfed failed ({code}):\n{self.log.read_text(encoding='utf-8')[-3000:]}")


class ObjectStore:
    """Bytes in the object stores of a command's Ray and spilled from them, as its raylets report."""

    def __init__(self) -> None:
        self._at: list[tuple[str, int]] = []

    def __call__(self, pids: list[int]) -> dict[str, float]:
        try:
            from ray._private.internal_api import node_stats

            self._at = self._at or _raylets(pids)
            stats = [node_stats(host, port, include_memory_info=False).store_stats for host, port in self._at]
        except Exception:  # not up yet, or down again
            return {}
        return {
            "store": float(sum(t.object_store_bytes_used for t in stats)),
            "spilled": float(sum(t.spilled_bytes_total for t in stats)),
        }


def _raylets(pids: list[int]) -> list[tuple[str, int]]:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    words = [w for p in pids for w in psutil.Process(p).cmdline() if w.startswith("--gcs-address=")]
    found = GcsClient(address=words[0].partition("=")[2]).get_all_node_info()
    return [(n.node_manager_address, n.node_manager_port) for n in found.values()]


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a new folder with a short path: sockets' paths are limited."""
    where = Path(tempfile.mkdtemp(prefix="sc-", dir="/tmp"))
    try:
        yield where
    finally:
        shutil.rmtree(where, ignore_errors=True)


def start(made: Mapping[str, Any], where: Path, *args: str, **watching: Any) -> Command:
    import yaml

    (where / "config.yaml").write_text(yaml.safe_dump(dict(made)), encoding="utf-8")
    return Command(["run", str(where / "config.yaml"), "--out", str(where / "runs"), *args], where, **watching)


def only_run(where: Path) -> Path:
    (found,) = [p for p in (where / "runs").iterdir() if not p.name.startswith(".")]
    return found


def measured(command: Command, run: Path) -> dict[str, Any]:
    """Return what a run that has ended took: seconds of a round, CPU seconds of the whole command, the start, the most memory at once."""
    from rayfed.storage.run_folder import read_metrics

    found = read_metrics(run).to_pylist()
    times = [r["time/round"] for r in found]
    took = time.time() - command.began
    scored = [r["time/evaluate"] for r in found if r.get("time/evaluate") is not None]
    return {
        "evaluate_s": statistics.median(scored), "round_s": statistics.median(times[SKIPPED:] or times),
        "least_s": min(times), "most_s": max(times[SKIPPED:] or times),
        "rounds": len(times), "total_s": took, "outside_rounds_s": took - sum(times),
        "cpu_s": command.watch.cpu[-1][1] - (command.watch.cpu[0][1] if command.shared else 0.0),
        "pss_mb": command.watch.peak / 1e6,
    }  # fmt: skip


def point(x: float, made: Mapping[str, Any], *args: str, **watching: Any) -> dict[str, Any]:
    with folder() as where:
        command = start(made, where, *args, **watching)
        until(partial(begun, where / "runs"), "a first round", command, 600)
        first = time.time() - command.began
        command.end()
        out = {"x": x, "first_round_s": first, **measured(command, only_run(where))}
    print(json.dumps(out), flush=True)
    return out


def begun(runs: Path) -> bool:
    """Say whether a run of the folder has had its first round."""
    return runs.is_dir() and any(in_round(p) > 0 for p in runs.iterdir() if not p.name.startswith("."))


def curve(title: str, points: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return the points with the slopes of log seconds a round against log x: least squares over all points, and of the last two."""
    at = np.log([[p["x"], p["round_s"]] for p in points])
    slope = float(np.polyfit(at[:, 0], at[:, 1], 1)[0]) if len(at) > 1 else 0.0
    last = float((at[-1, 1] - at[-2, 1]) / (at[-1, 0] - at[-2, 0])) if len(at) > 1 else 0.0
    return {"x": title, "slope": slope, "slope_of_last_two": last, "points": points, **more}


# -- curves ------------------------------------------------------------------------------------------------------------


def by_clients(tiny: bool) -> dict[str, Any]:
    sizes, population, rounds = ((5, 20), 40, 4) if tiny else ((10, 100, 1000, 10_000), 20_000, 12)
    made = [point(n, config(population, n, rounds, examples=100 * population)) for n in sizes]
    return curve("clients per round", made, population=population)


def by_population(tiny: bool) -> dict[str, Any]:
    """Measure all populations twice, upwards and downwards, since the bounds compare two of the points; the better of each counts."""
    sizes, per_round, rounds = ((50, 500), 20, 4) if tiny else ((1000, 10_000, 100_000, 1_000_000), 1000, 22)
    order = sizes if tiny else (*sizes, *sizes[::-1])
    runs = [point(n, config(n, per_round, rounds, examples=2 * sizes[-1])) for n in order]
    made = [min((r for r in runs if r["x"] == n), key=lambda r: r["round_s"]) for n in sizes]
    made = [{**p, "pss_mb": min(r["pss_mb"] for r in runs if r["x"] == p["x"])} for p in made]
    few, many = (next(p for p in made if p["x"] == n) for n in (sizes[0 if tiny else 1], sizes[-1]))
    ratios = {f"{k}_ratio": many[k] / few[k] for k in ("round_s", "pss_mb", "first_round_s")}
    return curve("population", made, per_round=per_round, compared=[few["x"], many["x"]], **ratios)


def by_size(tiny: bool) -> dict[str, Any]:
    made = []
    for wanted in (1e3, 1e4) if tiny else (1e4, 1e5, 1e6, 1e7, 1e8):
        hidden = [width(wanted)] * 2
        rounds = 4 if tiny else 7 if wanted > 1e7 else 12
        one = config(
            20, 4, rounds, examples=4000, hidden=hidden, resources={"cohort": 1}, storage={"snapshot_every": rounds}
        )
        made.append(point(parameters(hidden), one))
    return curve("parameters", made, per_round=4)


def by_actors(tiny: bool) -> dict[str, Any]:
    per_round, rounds = (20, 4) if tiny else (1000, 12)
    made = []
    for n in (1, 2) if tiny else (1, 2, 4):
        share = min(1.0, (os.cpu_count() or 1) / n)
        made.append(
            point(
                n, config(10 * per_round, per_round, rounds, examples=20_000 if tiny else 200_000, actors=n,
                          hidden=(512, 512), resources={"cpus_per_actor": share, "cohort": max(1, per_round // 8)}),
            )
        )  # fmt: skip
    return curve("actors", made, per_round=per_round)


NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for _ in range(int(sys.argv[1]) - 1):
    cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print("address", cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@contextlib.contextmanager
def cluster(nodes: int, mark: str) -> Iterator[str]:
    """Yield the address of a Ray of several nodes of one CPU on this machine, whose processes have a mark."""
    from watch import MARK

    with folder() as where:
        environment = {
            **os.environ,
            MARK: mark,
            "RAY_TMPDIR": str(where),
            "RAY_AUTH_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", NODES, str(nodes)], env=environment, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("address ")), None)
            if line is None:
                sys.exit(f"no cluster of {nodes} nodes came up")
            yield line.split()[1]
        finally:
            process.communicate("end\n", timeout=120)


def by_nodes(tiny: bool) -> dict[str, Any]:
    per_round, rounds = (20, 4) if tiny else (1000, 12)
    made = []
    for n in (1, 2) if tiny else (1, 2, 3, 4):
        mark = uuid.uuid4().hex
        with cluster(n, mark) as address:
            one = config(
                10 * per_round, per_round, rounds, examples=20_000 if tiny else 200_000, actors=n,
                hidden=(512, 512), resources={"cohort": max(1, per_round // 8)},
            )  # fmt: skip
            made.append(point(n, one, "--address", address, mark=mark))
    return curve("nodes", made, per_round=per_round)


# -- client state ------------------------------------------------------------------------------------------------------


def stateful(clients: int, per_round: int, rounds: int, tiny: bool, keep: int) -> dict[str, Any]:
    """Return the config of SCAFFOLD on about 25,000 parameters, cyclic: in `clients / per_round` rounds each client has one turn."""
    hidden = [width(500 if tiny else 25_000)] * 2
    return config(
        clients, per_round, rounds, examples=2 * clients, hidden=hidden, method="scaffold",
        evaluate={"every": rounds, "clients": min(clients, 100)}, federation={"participation": {"kind": "cyclic"}},
        storage={"snapshot_every": 1, "keep": keep},
    )  # fmt: skip


def written(run: Path, touched: int) -> dict[str, Any]:
    """Return what the run's last snapshot wrote, the median seconds from one kept snapshot to the next, and of the round within."""
    from rayfed.storage.run_folder import read_metrics

    rows = {r["round"]: r for r in read_metrics(run).to_pylist()}
    kept = sorted((run / "snapshots").glob("round-*"))
    manifests = [json.loads((s / "manifest.json").read_text(encoding="utf-8")) for s in kept]
    ended = {int(m["round"]): m["time"] for m in manifests}
    # Snapshots are written behind the rounds: what a round waits for them is the difference, with the noise of both clocks.
    periods = {r: t - ended[r - 1] for r, t in ended.items() if r - 1 in ended}
    spent = [rows[r]["time/round"] + (rows[r].get("time/evaluate") or 0.0) for r in periods]
    (segment,) = (run / "segments").glob(f"{kept[-1].name}-*")
    size = segment.stat().st_size
    return {
        "x": touched, "state_bytes": size, "bytes_per_client": size / touched,
        "manifest_bytes": (kept[-1] / "clients.json").stat().st_size,
        "period_s": statistics.median(periods.values()), "round_s": statistics.median(spent),
    }  # fmt: skip


def by_touched(clients: int, sizes: Sequence[int], tiny: bool) -> list[dict[str, Any]]:
    """Measure what the snapshot of a round writes and takes, by how many clients the round touched."""
    made = []
    for n in sizes:
        with folder() as where:
            start(stateful(clients, n, 5, tiny, keep=5), where).end()
            made.append(written(only_run(where), n))
        print(json.dumps(made[-1]), flush=True)
    return made


def in_round(run: Path) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((run / "state.json").read_text(encoding="utf-8"))["round"])
    return 0


def _beyond(run: Path, round: int) -> bool:
    return in_round(run) > round


def until(condition: Callable[[], Any], what: str, command: Command, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while True:
        ended = command.process.poll() is not None  # asked first: what it did last counts
        if found := condition():
            return found
        if ended or time.monotonic() > end:
            sys.exit(f"did not happen: {what}\n{command.log.read_text(encoding='utf-8')[-3000:]}")
        time.sleep(0.05)


def by_state(tiny: bool) -> dict[str, Any]:
    """Measure a run with all clients stateful: killed on the way and resumed, then resumed once more for further rounds."""
    from rayfed.storage.run_folder import read_metrics

    clients, per_round, sizes = (6000, 30, (5,)) if tiny else (100_000, 1000, (10, 100))
    rounds, more = clients // per_round, 2 if tiny else 5
    touched = by_touched(clients, sizes, tiny)
    with folder() as where:
        command = start(stateful(clients, per_round, rounds, tiny, keep=more), where, store=True)
        runs = where / "runs"
        until(lambda: runs.is_dir() and any(p.name[0] != "." for p in runs.iterdir()), "a run folder", command, 600)
        run = only_run(where)
        half = rounds // 2
        until(partial(_beyond, run, half - 1), f"round {half}", command, 7200)
        command.end(kill=True)
        killed = max(r["round"] for r in read_metrics(run).to_pylist())
        peaks, stores = [command.watch.peak], [command.watch.samples]
        resumed = []
        for sets in ([], ["--set", f"rounds={rounds + more}"]):
            before = len(read_metrics(run))
            command = Command(["resume", str(run), *sets], where, store=True)
            until(partial(_beyond, run, before), "a round after resuming", command, 1800)
            resumed.append({"from_round": before, "first_round_after_s": time.time() - command.began})
            command.end()
            peaks.append(command.watch.peak)
            stores.append(command.watch.samples)
        found = read_metrics(run).to_pylist()
        events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        times = [r["time/round"] for r in found]
        manifest = json.loads(
            (sorted((run / "snapshots").glob("round-*"))[-1] / "clients.json").read_text(encoding="utf-8")
        )
        last = written(run, per_round)
        states = sum(f.stat().st_size for f in (run / "segments").iterdir())
        at = np.log([[p["x"], p["state_bytes"]] for p in [*touched, last]])
        out = {
            "clients": clients, "per_round": per_round, "parameters": parameters([width(500 if tiny else 25_000)] * 2),
            "touched": [*touched, last], "slope": float(np.polyfit(at[:, 0], at[:, 1], 1)[0]),
            "killed_after_round": killed, "resumed": resumed,
            "resumed_at": [e["round"] for e in events if e["kind"] == "resumed"],
            "rounds": [r["round"] for r in found], "stateful_clients": len(manifest),
            "segments_bytes": states, "segments_per_live_state": states / (len(manifest) * last["bytes_per_client"]),
            "round_s_first_tenth": statistics.median(times[SKIPPED : SKIPPED + max(1, rounds // 10)]),
            "round_s_last_tenth": statistics.median(times[-more - max(1, rounds // 10) : -more]),
            "round_s_after": statistics.median(times[-more:]),
            "pss_mb": max(peaks) / 1e6,
            "store_mb": max((s.also.get("store", 0.0) for some in stores for s in some), default=0.0) / 1e6,
            "spilled_mb": max((s.also.get("spilled", 0.0) for some in stores for s in some), default=0.0) / 1e6,
        }  # fmt: skip
    print(json.dumps(out), flush=True)
    return out


# -- soak --------------------------------------------------------------------------------------------------------------


def by_time(tiny: bool) -> dict[str, Any]:
    """Measure what processes hold over the rounds, and its growth per 100 rounds once every client had its turn."""
    clients, per_round, rounds = (40, 10, 150) if tiny else (1000, 200, 500)  # tiny: long enough for some samples
    made = config(
        clients, per_round, rounds, examples=20 * clients, method="scaffold",
        evaluate={"every": max(1, rounds // 10), "clients": min(100, clients)},
    )  # fmt: skip
    with folder() as where:
        command = start(made, where, every=0.2 if tiny else 1.0, store=True)
        samples: list[dict[str, float]] = []
        while command.process.poll() is None:
            time.sleep(0.05 if tiny else 0.25)
            new = command.watch.samples[len(samples) :]
            found = list((where / "runs").glob("scale-*"))
            now = in_round(found[0]) if found else 0
            for s in new:
                held = {f"rss/{k}": float(v) for k, v in s.rss.items()} | {
                    f"files/{k}": float(v) for k, v in s.files.items()
                }
                samples.append({"round": now, "time": s.time - command.began, "pss": float(s.pss), **held, **s.also})
        command.end()
        run = only_run(where)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        out = measured(command, run)
    steady = [s for s in samples if rounds * 0.2 <= s["round"] < rounds]
    names = [n for n in ("pss", "rss/driver", "rss/server", "rss/clients", "store", "files/driver", "files/server",
                         "files/clients", "files/ray") if sum(n in s for s in steady) > 1]  # fmt: skip
    growth = {}
    for n in names:
        at = np.array([[s["round"], s[n]] for s in steady if n in s])
        slope = float(np.polyfit(at[:, 0], at[:, 1], 1)[0]) if np.ptp(at[:, 0]) else 0.0
        level = float(np.median(at[:, 1]))
        growth[n] = {"level": level, "per_100_rounds": 100 * slope, "share": 100 * slope / level if level else 0.0}
    restarts = sum(e["kind"] == "actor restarted" for e in events)
    out |= {"clients": clients, "per_round": per_round, "restarts": restarts, "growth": growth, "samples": samples}
    print(json.dumps({k: v for k, v in out.items() if k != "samples"}), flush=True)
    return out


def by_events(tiny: bool) -> dict[str, Any]:
    """Measure what a reply of an asynchronous method costs, and whether a longer run holds more."""
    from rayfed.config.load import READY

    devices, at_work, rounds, sizes = (200, 20, 4, (1, 5)) if tiny else (100_000, 1000, 22, (1, 10, 100, 1000))
    traces = {n: str(READY / "traces" / f"constructed-{n}.csv") for n in ("devices", "stays")}

    def one(method: Any, n: int) -> dict[str, Any]:
        return config(
            devices, at_work, n, examples=2 * devices, method=method,
            devices={"profile": "trace", "file": traces["devices"], "assign": "random"},
            federation={"participation": {"kind": "trace", "file": traces["stays"], "assign": "random"}},
        )  # fmt: skip

    made = [point(n, one({"name": "fedbuff", "buffer": n}, rounds)) for n in sizes]
    longer = point(sizes[1], one({"name": "fedbuff", "buffer": sizes[1]}, 10 * rounds))
    return curve(
        "replies a step",
        made,
        devices=devices,
        at_work=at_work,
        synchronous=point(at_work, one("fedavg", rounds)),
        longer=longer,
    )


MEASURE = {
    "clients": by_clients, "population": by_population, "size": by_size, "actors": by_actors, "nodes": by_nodes,
    "state": by_state, "soak": by_time, "events": by_events,
}  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--curves", default=",".join(CURVES))
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # of the Ray that each run starts for itself, also when it is asked
    from scale_page import picture, write
    from watch import about

    asked = a.curves.split(",")
    if unknown := sorted(set(asked) - set(CURVES)):
        sys.exit(f"--curves: {unknown[0]!r} found, allowed: {', '.join(CURVES)}")
    out = a.out or (None if a.tiny else HERE)
    file = None if out is None else out / "scale.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    found = before.get("curves", {})
    packages = {n: version(n) for n in ("torch", "ray", "numpy")}
    for name in asked:
        machine = {**about(), **packages, "command": " ".join(["python", *sys.argv])}
        found[name] = {"about": machine, **MEASURE[name](a.tiny)}
        ordered = {n: found[n] for n in CURVES if n in found}
        if out is not None and file is not None:  # after each curve: the later ones take long
            out.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"curves": ordered}, indent=1) + "\n", encoding="utf-8")
            (out / "SCALE.md").write_text(write(ordered), encoding="utf-8")
            if name == "soak":
                picture(found["soak"], out / "soak.png")
    print(write({n: found[n] for n in CURVES if n in found}))


if __name__ == "__main__":
    main()
