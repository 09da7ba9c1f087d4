"""What families cost: one run with four of them against four runs, each of one family's clients alone.

    python benchmarks/families.py [--rounds 30] [--repeats 3] [--out benchmarks/families.json]

Every run is a process of its own, which says the CPU seconds of its rounds (without start and evaluation) and by how much its
memory rose at most over what it held when data and models were set up. Runs with and without families take turns. The parts of a
sum are a quarter of the clients each, so that both sides do the same visits; local training alone, since it sends nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "a": {"name": "mlp", "hidden": [256]},
    "b": {"name": "mlp", "hidden": [512, 128]},
    "c": {"name": "cnn"},
    "d": {"name": "resnet", "width": 8},
}
CLIENTS = 64
BOUND = 1.2


def config(model: Any, clients: int, rounds: int) -> dict[str, Any]:
    return {
        "name": "families",
        "rounds": rounds,
        "task": {"data": {"name": "synthetic:images", "examples": 40 * clients}, "model": model},
        "federation": {"clients": clients, "partition": {"kind": "iid"}},
        "local": {"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
        "method": {"name": "local_only"},
        "evaluate": {"every": rounds},
        "resources": {"executor": "vmap", "visits": "server", "cohort": 16},
        "storage": {"snapshot_every": 10_000},
        "track": [],
    }


def child(name: str, rounds: int) -> None:
    """Do one run's rounds and print what they took; name: a family's, or "all"."""
    import torch

    from rayfed import keys, partition
    from rayfed.config.schema import Config
    from rayfed.engine.dispatch import Dispatch
    from rayfed.engine.pool import LocalPool
    from rayfed.engine.resident import Resident
    from rayfed.fed import Fed
    from rayfed.launch.preflight import load_request

    torch.set_num_threads(1)
    everyone = {n: {**m, "share": 1 / len(MODELS)} for n, m in MODELS.items()}
    clients = CLIENTS if name == "all" else CLIENTS // len(MODELS)
    c = load_request(config(everyone if name == "all" else MODELS[name], clients, rounds))
    assert isinstance(c, Config)
    split, pool = partition.build(c), LocalPool()
    resident = Resident(c, split, None, "cpu")
    pool.setup("run", c, split, None)
    dispatch = Dispatch(c, split, resident.method, resident.task, pool, "run")
    fed = Fed(c, split, resident.method, resident.task, dispatch)
    state, held = resident.method.init(resident.task, keys.key(0, 0, -1, "init")), peak()
    for r in range(1, 4):  # what is recorded once
        state = one_round(fed, resident, state, r)
    began = time.process_time()
    for r in range(4, rounds + 4):
        state = one_round(fed, resident, state, r)
    print(json.dumps({"cpu_s": time.process_time() - began, "rose_mib": peak() - held, "held_mib": held}))


def one_round(fed: Any, resident: Any, state: Any, r: int) -> Any:
    fed.begin(r)
    state = resident.method.round(state, fed, resident.task)
    fed._dispatcher.commit()
    return state


def peak() -> float:
    """Return the most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(name: str, rounds: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--rounds", str(rounds)]
    return json.loads(
        subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.splitlines()[-1]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.rounds)
        return 0
    found: dict[str, list[dict[str, float]]] = {n: [] for n in ("all", *MODELS)}
    for _ in range(given.repeats):
        for name in found:
            found[name].append(measured(name, given.rounds))
    best = {n: min(r["cpu_s"] for r in runs) for n, runs in found.items()}
    rose = {n: statistics.median(r["rose_mib"] for r in runs) for n, runs in found.items()}
    parts = {"cpu_s": sum(best[n] for n in MODELS), "rose_mib": sum(rose[n] for n in MODELS)}
    ratios = {"time": best["all"] / parts["cpu_s"], "memory": rose["all"] / parts["rose_mib"]}
    print(
        f"CPU seconds of {given.rounds} rounds: together {best['all']:.2f}, parts {parts['cpu_s']:.2f}: {ratios['time']:.2f} of their sum"
    )
    print(
        f"memory of rounds, MiB: together {rose['all']:.0f}, parts {parts['rose_mib']:.0f}: {ratios['memory']:.2f} of their sum"
    )
    if given.out:
        figures = {
            "bound": BOUND,
            "ratios": ratios,
            "cpu_s": best,
            "rose_mib": rose,
            "rounds": given.rounds,
            "runs": found,
        }
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(max(ratios.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
