"""What an evaluation costs, in rounds of the same run.

    python benchmarks/evaluation.py [--cases NAME,...] [--against PATH] [--times N] [--rounds N] [--tiny] [--out DIR]

Every run is a process of its own without Ray, of one thread; it says how many CPU seconds its rounds and its evaluations took,
which other work on the machine does not change (`wall`: the same by the clock). `--against PATH` runs the rayfed of another
checkout in turn with this one. Writes benchmarks/evaluation.json and benchmarks/EVALUATION.md, unless `--tiny` or `--out DIR`.

no_rows: 1,000,000 clients without test rows, 1,000 a round. model_1m, model_10m: 20,000 clients and MLPs of 1 and 10 million
parameters, 4 a round, without test rows of clients; 1000 pooled rows. w2: workload W2 of benchmarks/peers, 360 pooled rows;
w2_own_rows: with the default split, 10,000 rows of clients more. w3: W3 with the default split, 520 texts. own_*: 10,000 clients
whose models differ, all of them asked in a round, no pooled test set: personal scores alone. clusters: the same with IFCA.
mixture: the same with a pooled test set of 100 rows, which every client's model predicts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "peers")]
FEATURES = 16


def rows(seed: int, *, examples: int, test: int) -> Any:
    """Return Gaussian blobs of ten classes."""
    import scale

    from rayfed.data import Dataset, Part

    found = scale.rows(seed, examples=examples)
    part = Part(found.test.x[:test], found.test.y[:test])
    return Dataset("rows", found.train, part, found.classes, found.label_names, "tabular")


def blobs(
    clients: int, per_round: int, hidden: list[int], *, each: int, test: int = 1000, **more: Any
) -> dict[str, Any]:
    """Return a config on blobs: clients of `each` rows, `test` rows in the pooled test set; visits of 5 steps of 2 rows."""
    data = {"name": f"{HERE / 'evaluation.py'}:rows", "examples": clients * each, "test": test}
    federation = {"clients": clients, "per_round": per_round, "partition": {"kind": "iid"}, "split": {"test": 0.0}}
    local = {"steps": 5, "batch_size": 2, "optimizer": {"name": "sgd", "lr": 0.05}}
    made: dict[str, Any] = {
        "task": {"data": data, "model": {"name": "mlp", "hidden": hidden}},
        "federation": federation,
        "local": local,
    }
    return more | {n: {**section, **more.get(n, {})} for n, section in made.items()}


def own(method: Any, tiny: bool, **more: Any) -> dict[str, Any]:
    """Return a config of clients that are served models of their own: five rows to train on and five to test on."""
    n = 20 if tiny else 10_000
    return blobs(
        n, n, [64], each=10, test=more.pop("test", 0), method=method, federation={"split": {"test": 0.5}}, **more
    )


def w2(tiny: bool, test: float) -> dict[str, Any]:
    """Return workload W2 of benchmarks/peers, `test` of each client's rows for its own test."""
    clients, per_round = (20, 4) if tiny else (1000, 100)
    return {
        "task": {"data": {"name": f"{HERE}/peers/data.py:images", "examples": clients * 40}, "model": "cnn"},
        "federation": {
            "clients": clients,
            "per_round": per_round,
            "partition": {"kind": "iid"},
            "split": {"test": test},
        },
        "local": {"epochs": 1, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.05}},
        "method": "fedavg",
    }


def w3(tiny: bool, where: Path) -> dict[str, Any]:
    """Return workload W3 of benchmarks/peers with the default split."""
    import cohorts
    import data

    clients, per_round = (4, 2) if tiny else (20, 10)
    data.texts(where, clients, 16 if tiny else 64)
    model = os.environ.get("RAYFED_MODEL") or cohorts.installed()
    return {
        "task": {"data": {"name": f"parquet:{where}", "length": 32}, "model": {"name": f"hf:{model}", "head": "mean", "dropout": False}},
        "federation": {"clients": clients, "per_round": per_round, "partition": {"kind": "iid", "min_examples": 1}},
        "local": {"epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]},
        "method": "fedavg",
    }  # fmt: skip


CASES: dict[str, Callable[[bool, Path], dict[str, Any]]] = {
    "no_rows": lambda tiny, where: blobs(50 if tiny else 1_000_000, 10 if tiny else 1000, [64], each=2, method="fedavg"),
    "model_1m": lambda tiny, where: blobs(20 if tiny else 20_000, 4, [8 if tiny else 987] * 2, each=2, method="fedavg"),
    "model_10m": lambda tiny, where: blobs(20 if tiny else 20_000, 4, [8 if tiny else 3149] * 2, each=2, method="fedavg"),
    "w2": lambda tiny, where: w2(tiny, 0.0),
    "w2_own_rows": lambda tiny, where: w2(tiny, 0.25),
    "w3": w3,
    "own_local": lambda tiny, where: own("local_only", tiny),
    "own_bn": lambda tiny, where: own("fedavg", tiny, task={"model": f"{HERE / 'evaluation.py'}:norm_net"}, local={"buffers": "private"}),
    "own_finetune": lambda tiny, where: own({"name": "fedavg_finetune", "finetune_epochs": 1}, tiny),
    "clusters": lambda tiny, where: own({"name": "ifca", "clusters": 3}, tiny),
    "mixture": lambda tiny, where: own("local_only", tiny, test=100),
}  # fmt: skip
TARGETS = {"no_rows": 3.0, "w2": 0.15, "w3": 0.6, "own_local": 2.0, "own_bn": 2.0, "own_finetune": 2.0}


def norm_net(classes: int, input_shape: tuple[int, ...]) -> Any:
    """Return an MLP with batch normalisation, whose running statistics clients may keep."""
    from torch import nn

    return nn.Sequential(nn.Linear(input_shape[0], 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, classes))


# -- one run, in a process of its own ----------------------------------------------------------------------------------


def timed(found: list[tuple[float, float]], of: Any, name: str) -> None:
    """Let a method of a class add the CPU and the wall seconds of each of its calls."""
    plain = getattr(of, name)

    def call(*args: Any, **more: Any) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            return plain(*args, **more)
        finally:
            found.append((time.process_time() - cpu, time.perf_counter() - wall))

    setattr(of, name, call)


def child(config: dict[str, Any], out: Path) -> None:
    """Run a config and write the median seconds of its rounds and its evaluations, without those of round 1."""
    import torch

    import rayfed
    from rayfed.engine.evaluation import Evaluator
    from rayfed.engine.runner import Runner

    torch.set_num_threads(1)
    whole: list[tuple[float, float]] = []
    scored: list[tuple[float, float]] = []
    timed(whole, Runner, "_compute_once")
    timed(scored, Evaluator, "evaluate")
    run = rayfed.run(config, local=True)
    row = run.metrics().to_pylist()[-1]
    rounds = [tuple(a - b for a, b in zip(w, s, strict=True)) for w, s in zip(whole, scored, strict=True)]
    made: dict[str, Any] = {
        "scores": {n: v for n, v in row.items() if n.startswith(("accuracy/", "loss/")) and v is not None}
    }
    for name, times in (("round", rounds), ("evaluation", scored)):
        for i, unit in enumerate(("cpu_s", "wall_s")):
            made[f"{name}_{unit}"] = statistics.median(t[i] for t in times[1:])
    out.write_text(json.dumps(made), encoding="utf-8")


def measure(name: str, tree: Path, tiny: bool, rounds: int) -> dict[str, Any]:
    """Measure a case with the rayfed of a checkout."""
    with tempfile.TemporaryDirectory(prefix="ev-") as folder:
        where, out = Path(folder), Path(folder) / "out.json"
        config = CASES[name](tiny, where)
        config |= {
            "name": name, "rounds": rounds, "evaluate": {"every": 1, **config.get("evaluate", {})}, "track": [],
            "resources": {"executor": "loop" if name == "w3" else "vmap"},
            "storage": {"path": str(where / "runs"), "snapshot_every": rounds},
        }  # fmt: skip
        (where / "config.json").write_text(json.dumps(config), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "evaluation.py"), "--child", str(where / "config.json"), str(out)]
        done = subprocess.run(command, env=environment, cwd=where, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            sys.exit(f"{name} in {tree} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


# -- the page ----------------------------------------------------------------------------------------------------------


def ratio(point: dict[str, Any], unit: str = "cpu_s") -> float:
    return point[f"evaluation_{unit}"] / point[f"round_{unit}"]


def page(found: dict[str, Any]) -> str:
    """Return the page of what was measured."""
    lines = [
        "# What an evaluation costs", "",
        "Generated by `python benchmarks/evaluation.py`, whose head says what the cases are; do not edit. One process, one thread, without",
        "Ray, `vmap` (w3: `loop`) on torch's kernels; medians. CPU seconds, which other work on the machine does not change; in brackets",
        "seconds by the clock.", "",
        "; ".join(f"{k} {v}" for k, v in found["about"].items()), "",
        "| case | a round, s | an evaluation, s | in rounds | target | runs x evaluations | before, s | before, in rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, case in found["cases"].items():
        now, old = case["now"], case.get("before")
        before = f"{old['evaluation_cpu_s']:.3g} | {ratio(old):.3g}" if old else "– | –"
        lines.append(
            f"| {name} | {now['round_cpu_s']:.3g} ({now['round_wall_s']:.3g}) "
            f"| {now['evaluation_cpu_s']:.3g} ({now['evaluation_wall_s']:.3g}) | {ratio(now):.3g} | {TARGETS.get(name, '–')} "
            f"| {' x '.join(map(str, case['measured']))} | {before} |"
        )
    return "\n".join([*lines, ""])


def middle(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run whose evaluation took the median of CPU seconds."""
    return sorted(points, key=lambda p: p["evaluation_cpu_s"])[(len(points) - 1) // 2]


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--cases", default=",".join(CASES))
    p.add_argument("--against", type=Path)
    p.add_argument("--times", type=int, default=1, help="runs of each case")
    p.add_argument("--rounds", type=int, default=3, help="of each run; the first does not count")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--out", type=Path)
    p.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    asked = p.parse_args()
    if asked.child:
        child(json.loads(asked.child[0].read_text(encoding="utf-8")), asked.child[1])
        return
    from watch import about

    where = asked.out or HERE
    kept = where / "evaluation.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"cases": {}}
    found["about"] = {**about(), "torch": version("torch")}
    trees = {"now": HERE.parent} | ({"before": asked.against.resolve()} if asked.against else {})
    for name in asked.cases.split(","):
        points: dict[str, list[dict[str, Any]]] = {tree: [] for tree in trees}
        for _ in range(asked.times):
            for tree, folder in trees.items():
                points[tree].append(measure(name, folder, asked.tiny, asked.rounds))
                print(name, tree, json.dumps(points[tree][-1]), flush=True)
        found["cases"][name] = {**found["cases"].get(name, {}), **{tree: middle(made) for tree, made in points.items()}}
        found["cases"][name]["measured"] = [asked.times, asked.rounds - 1]
        if asked.out or not asked.tiny:
            found["cases"] = {n: found["cases"][n] for n in CASES if n in found["cases"]}
            where.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (where / "EVALUATION.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
