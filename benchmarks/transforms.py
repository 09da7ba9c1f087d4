"""What transforms of updates cost a round, and how fast gradients of single examples are.

    python benchmarks/transforms.py [--pairs 7] [--rounds 12] [--out FILE.json]

Part one: runs of FedAvg without transforms and with clip + gaussian (and with two compressors), alternating, in one process of one
thread. A round's cost is its processor time from commit to commit, the median over a run without its first three rounds; the overhead
is the median over pairs of with / without - 1, beside the least and greatest pair.
Part two: clients per second of local training with `local.privacy`, without it, and by Opacus (where it is installed: it is no
dependency), one client after another as its users do; the same model, batches, clip and noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import rayfed

WARM = 3  # first rounds of a run that do not count: code is made and kernels are recorded
CLIP, NOISE = {"kind": "clip", "norm": 1.0}, {"kind": "gaussian", "noise_multiplier": 1.0, "accountant": "none"}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "clip + gaussian": [CLIP, NOISE],
    "topk 1 % + quantise 8": [{"kind": "topk", "fraction": 0.01}, {"kind": "quantise", "bits": 8}],
    "quantise 4": [{"kind": "quantise", "bits": 4}],
}
MODELS: dict[str, dict[str, Any]] = {
    "mlp, 15,000 parameters": {"name": "mlp", "hidden": [200]},
    "cnn": {"name": "cnn"},
}
PRIVACY = {"norm": 1.0, "noise_multiplier": 1.0, "accountant": "none"}


def config(model: dict[str, Any], rounds: int, **more: Any) -> dict[str, Any]:
    """Return a config: 20 of 60 clients a round, about 24 digits each, five local epochs, evaluated at the end alone."""
    local = {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05}, **more.pop("local", {})}
    return {
        "name": "transforms", "rounds": rounds, "task": {"data": "digits", "model": model}, "method": "fedavg", "local": local,
        "federation": {"clients": 60, "per_round": 20, "partition": {"kind": "iid"}},
        "evaluate": {"every": rounds}, "storage": {"snapshot_every": rounds}, "track": [],
        "resources": {"executor": "vmap", "cohort": 20, "matmul": "torch", "channels_last": False}, **more,
    }  # fmt: skip


class Clock(rayfed.Callback):
    """Notes processor time at each commit."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_round(self, run: Any, row: dict[str, Any]) -> None:
        self.at.append(time.process_time())


def period(made: dict[str, Any], where: Path) -> float:
    """Return the median processor seconds of a round of a run."""
    clock = Clock()
    rayfed.run(made, local=True, out=str(where), callbacks=[clock], progress=False)
    gaps = [b - a for a, b in zip(clock.at[:-1], clock.at[1:], strict=True)]
    return statistics.median(gaps[WARM - 1 : -1])  # the last one is evaluated


def paired(without: Callable[[], float], with_: Callable[[], float], pairs: int) -> dict[str, float]:
    """Return the medians of two alternating measurements, and of their ratios less 1 with the least and greatest."""
    found = [(without(), with_()) if i % 2 == 0 else (with_(), without())[::-1] for i in range(pairs)]
    over = [b / a - 1 for a, b in found]
    return {
        "without_s": statistics.median(a for a, _ in found),
        "with_s": statistics.median(b for _, b in found),
        "overhead": statistics.median(over),
        "least": min(over),
        "greatest": max(over),
    }


def overheads(a: argparse.Namespace, where: Path) -> list[dict[str, Any]]:
    """Measure part one."""
    rows = []
    for model, made in MODELS.items():
        for chain, transforms in CHAINS.items():
            plain, chained = config(made, a.rounds), config(made, a.rounds, transforms=transforms)
            row = paired(lambda c=plain: period(c, where), lambda c=chained: period(c, where), a.pairs)
            rows.append({"model": model, "chain": chain, **row})
            print(
                f"{model:24} {chain:24} {1e3 * row['without_s']:8.1f} ms {1e3 * row['with_s']:8.1f} ms "
                f"{row['overhead']:+7.1%} ({row['least']:+.1%} to {row['greatest']:+.1%})"
            )
    return rows


def per_example(a: argparse.Namespace, where: Path) -> list[dict[str, Any]]:
    """Measure part two."""
    rows = []
    for model, made in MODELS.items():
        private = config(made, a.rounds, local={"privacy": PRIVACY})
        row: dict[str, Any] = {
            "model": model,
            "without": 20 / period(config(made, a.rounds), where),
            "local.privacy": 20 / period(private, where),
        }
        if importlib.util.find_spec("opacus"):
            row["opacus"] = opacus_clients_per_s(private)
        rows.append(row)
        print(f"{model:24} clients/s: " + ", ".join(f"{n} {v:.1f}" for n, v in row.items() if n != "model"))
    return rows


def opacus_clients_per_s(made: dict[str, Any]) -> float:
    """Return clients per second of processor time of the same local training by Opacus, the best of three passes over 20 clients."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    from rayfed import models, partition
    from rayfed.launch.preflight import load_request

    c = load_request(made)
    federation = partition.build(c)
    x, y = (torch.as_tensor(np.asarray(federation.arrays[n])) for n in ("x", "y"))
    size, best = c.local.batch_size, 0.0
    for _ in range(3):
        began = time.process_time()
        for client in range(20):
            module = GradSampleModule(
                models.build(c.task.model, federation.classes, tuple(federation.input_shape)).train()
            )
            plain = torch.optim.SGD(module.parameters(), lr=c.local.optimizer.lr)
            optimizer = DPOptimizer(plain, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=size)
            rows = torch.as_tensor(federation.train[client])
            for _ in range(c.local.epochs or 1):
                for batch in rows[torch.randperm(len(rows))].split(size):
                    optimizer.zero_grad()
                    F.cross_entropy(module(x[batch]), y[batch]).backward()
                    optimizer.step()
        best = max(best, 20 / (time.process_time() - began))
    return best


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--pairs", type=int, default=7)
    p.add_argument("--rounds", type=int, default=12)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    import torch

    torch.set_num_threads(1)
    about = {
        "torch": torch.__version__, "python": platform.python_version(), "pairs": a.pairs, "rounds": a.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, processor time",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as tmp:
        found = {"about": about, "overhead": overheads(a, Path(tmp)), "per_example": per_example(a, Path(tmp))}
    if a.out:
        a.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
