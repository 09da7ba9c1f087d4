"""Visits per second of recommendation with one user a client: 1,171 users, 903 items, beside a plain loop over the users in PyTorch.

    python benchmarks/ranking.py [--users 1171] [--items 903] [--dim 16] [--rounds 3] [--repeat 3] [--shelf DIR] [--out FILE.json]

With --shelf the data shelf's movie_ratings are used, else as many constructed users. Rows: `vmap` and `loop` of the engine, with PFedRec
(two steps a batch, a table of items at every user), and `plain`, the same steps with modules, torch.optim.SGD and one table
a user, as the authors'
code has it. One thread, one process each; every repetition runs all rows in turn, and medians count. Rates are of training
visits alone, without
evaluation; the first round of each run, in which data are laid out and kernels are made, does not count. Its last lines are
metrics of sets: seconds of CPU time of AUROC over 1,000 clients, against the metric's own calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROWS = ("vmap", "loop", "plain")


def config(a: argparse.Namespace, executor: str = "vmap") -> dict[str, Any]:
    """Return the config that all rows train."""
    data: dict[str, Any] = {"name": "synthetic:tastes", "users": a.users, "items": a.items, "each": 25}
    if a.shelf:
        data = {"name": f"parquet:{a.shelf}/movie_ratings", "item": "item", "client": "client", "time": "timestamp"}
    return {
        "name": "ranking", "rounds": a.rounds + 1,
        "task": {"data": data, "kind": "ranking", "model": {"name": "factors", "dim": a.dim}},
        "federation": {"clients": a.users, "per_round": a.users, "partition": {"kind": "natural"}},
        "local": {"epochs": 1, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}},
        "method": {"name": "pfedrec", "item_rate": 0.5},
        "evaluate": {"every": a.rounds + 1}, "resources": {"executor": executor, "actors": 1}, "track": [],
    }  # fmt: skip


def engine(a: argparse.Namespace, executor: str) -> float:
    """Return training visits per second of the engine in this process, the median of the rounds after the first."""
    import tempfile

    import torch

    import rayfed

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as where:
        done = rayfed.run({**config(a, executor), "storage": {"path": where}}, local=True)
        rows = done.metrics().to_pylist()
    return statistics.median(r["clients/visits"] / r["time/round"] for r in rows[1:])


def plain(a: argparse.Namespace) -> float:
    """Return visits per second of a plain loop: a user has modules and optimizers of its own, and 4 drawn items for each own one."""
    import torch
    from torch import nn

    from rayfed import partition
    from rayfed.launch.preflight import load_request

    torch.set_num_threads(1)
    made: Any = load_request(config(a))
    f = partition.build(made)
    n, rates = f.classes, []
    server = torch.randn(n, a.dim) * 0.1
    users = [nn.Linear(a.dim, 1) for _ in range(f.clients)]
    taken = [set(f.arrays["y"][f.train[u]].tolist()) for u in range(f.clients)]
    rng, bce = torch.Generator().manual_seed(0), nn.BCEWithLogitsLoss()
    for _ in range(a.rounds + 1):
        begun, total = time.perf_counter(), torch.zeros_like(server)
        for u in range(f.clients):
            items, score = nn.Embedding.from_pretrained(server.clone(), freeze=False), users[u]
            of_user = torch.optim.SGD(score.parameters(), lr=0.1)
            of_items = torch.optim.SGD(items.parameters(), lr=0.1 * n * 0.5)
            mine = torch.as_tensor(f.arrays["y"][f.train[u]])
            free = torch.tensor([i for i in range(n) if i not in taken[u]])
            for batch in mine[torch.randperm(len(mine), generator=rng)].split(32):
                others = free[torch.randint(len(free), (len(batch), 4), generator=rng)]
                asked = torch.cat([batch[:, None], others], 1)
                target = torch.zeros(asked.shape)
                target[:, 0] = 1
                for optimizer in (of_user, of_items):
                    of_user.zero_grad()
                    of_items.zero_grad()
                    bce(score(items(asked)).squeeze(-1), target).backward()
                    optimizer.step()
            total += items.weight.detach()
        server = total / f.clients
        rates.append(f.clients / (time.perf_counter() - begun))
    return statistics.median(rates[1:])


def sets(clients: int = 1000, rows: int = 40) -> dict[str, float]:
    """Return seconds of CPU time in which AUROC of 1,000 clients is worked out: by the engine's metrics of sets, and by the metric's calls
    alone on arrays that are cut already."""
    import numpy as np

    from rayfed.engine.scoring import ClientRows, SetScores
    from rayfed.set_metrics import make

    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, clients * rows)
    p = rng.random((clients * rows, 2))
    p /= p.sum(1, keepdims=True)
    cut = np.arange(clients * rows).reshape(clients, rows)
    metric = make("auroc", "classes", ("no", "yes"))

    def through() -> None:
        made = object.__new__(SetScores)
        made.metrics, made.arrays = [metric], {"y": y}
        made.measures, made.names = metric.measures, ("auroc",)
        made.scope("personal", {c: ClientRows(r, {"prediction": p[r]}) for c, r in enumerate(cut)})

    def alone() -> None:
        for r in cut:
            metric.compute({"prediction": p[r]}, {"y": y[r]})
        metric.compute({"prediction": p}, {"y": y})

    found = {}
    for name, call in (("set metrics, engine", through), ("set metrics, calls alone", alone)):
        times = []
        for _ in range(3):
            begun = time.process_time()
            call()
            times.append(time.process_time() - begun)
        found[name] = statistics.median(times)
    return found


def main() -> None:
    """Run all rows in turn and print the table; with --only one row in this process."""
    p = argparse.ArgumentParser(description="visits per second of recommendation")
    p.add_argument("--users", type=int, default=1171)
    p.add_argument("--items", type=int, default=903)
    p.add_argument("--dim", type=int, default=16)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--shelf")
    p.add_argument("--only", choices=(*ROWS, "sets"))
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    if a.only:
        found = sets() if a.only == "sets" else plain(a) if a.only == "plain" else engine(a, a.only)
        print(json.dumps(found))
        return
    seen: dict[str, list[float]] = {row: [] for row in ROWS}
    words = sys.argv[1:]
    for _ in range(a.repeat):
        for row in ROWS:
            seen[row].append(_elsewhere(words, row))
    rates = {row: statistics.median(v) for row, v in seen.items()}
    for row, rate in rates.items():
        spread = f"{min(seen[row]):,.0f} to {max(seen[row]):,.0f}"
        print(f"{row:6} {rate:8,.0f} visits/s  ({spread})  {rate / rates['plain']:.1f} x plain")
    of_sets = _elsewhere(words, "sets")
    for name, seconds in of_sets.items():
        print(f"{name}: {seconds:.2f} s of CPU for 1,000 clients")
    if a.out:
        a.out.write_text(
            json.dumps({"rates": seen, "sets": of_sets, "users": a.users, "items": a.items}, indent=1) + "\n",
            encoding="utf-8",
        )


def _elsewhere(words: list[str], row: str) -> Any:
    """Return what one row gives in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *words, "--only", row], capture_output=True, encoding="utf-8", check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
