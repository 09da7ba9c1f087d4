"""Successive halving against random search at equal rounds, where configurations are judged by few clients.

    python benchmarks/hpo_noise.py [--repetitions N] [--tiny] [--out DIR]

After Kuo et al. 2022, "On Noisy Evaluation in Federated Hyperparameter Tuning" (2212.08930). Nine learning rates of FedAvg on digits, 20
clients, Dirichlet 0.3, a fifth of each client's rows for validation: every (rate, seed) is run once, with each client's validation loss
after rounds 2, 6 and 18. Both searches are then replayed over this table, each repetition with a seed of its own: halving keeps a third
of the nine after 2 and after 6 rounds and goes on from there, 42 rounds in all; random search runs as many rates as that buys to the end,
two. What they choose by is the mean loss of m clients, drawn anew for each evaluation; regret is the loss over all clients after 18
rounds, less that of the best rate. Writes benchmarks/hpo.json and benchmarks/HPO.md, unless `--tiny` (which only shows that it works) or
`--out DIR`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RUNGS, KEEP = (2, 6, 18), 3  # rounds after which halving judges, and the share (one in KEEP) that goes on
RATES = tuple(float(f"{10 ** (-3 + i * 0.375):.2g}") for i in range(9))  # 0.001 to 1
ASKED = (2, 5, 20)

Judge = Callable[[int, int], float]  # (configuration, rung) -> the loss that a search sees


def halving(n: int, judge: Judge) -> tuple[int, int]:
    """Return (the chosen one of n configurations, rounds spent): successive halving, each survivor going on from where it was."""
    alive, spent, before = list(range(n)), 0, 0
    for rung, rounds in enumerate(RUNGS):
        spent += len(alive) * (rounds - before)
        before = rounds
        seen = {c: judge(c, rung) for c in alive}
        alive = sorted(alive, key=lambda c: seen[c])[: max(1, math.ceil(len(alive) / KEEP))]
    return alive[0], spent


def random_search(n: int, rounds: int, rng: np.random.Generator, judge: Judge) -> tuple[int, int]:
    """Return (the chosen one of n configurations, rounds spent): as many as `rounds` buys, run to the end."""
    tried = rng.permutation(n)[: max(1, rounds // RUNGS[-1])].tolist()
    seen = {c: judge(c, len(RUNGS) - 1) for c in tried}
    return min(tried, key=lambda c: seen[c]), len(tried) * RUNGS[-1]


def config(rates: Sequence[float], seeds: Sequence[int], clients: int) -> dict[str, Any]:
    """Return the study whose runs are the table."""
    return {
        "name": "hpo", "rounds": RUNGS[-1],
        "task": {"data": "digits", "model": {"name": "mlp", "hidden": [32]}},
        "federation": {
            "clients": clients, "partition": {"kind": "dirichlet", "alpha": 0.3}, "split": {"val": 0.2, "test": 0.2}
        },
        "local": {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        "method": "fedavg", "evaluate": {"every": RUNGS[0], "split": "val"},
        "resources": {"executor": "vmap"}, "track": [], "seeds": list(seeds),
        "arms": {f"lr_{i}": {"local": {"optimizer": {"lr": lr}}} for i, lr in enumerate(rates)},
    }  # fmt: skip


def table(rates: Sequence[float], seeds: Sequence[int], clients: int) -> np.ndarray:
    """Run everything and return each client's validation loss, (seeds, rates, rungs, clients); NaN of clients without such rows."""
    import rayfed

    losses = np.full((len(seeds), len(rates), len(RUNGS), clients), np.nan)
    with tempfile.TemporaryDirectory() as out:
        done = rayfed.run(config(rates, seeds, clients), local=True, out=out)
        assert isinstance(done, rayfed.Study)
        for i in range(len(rates)):
            for s, seed in enumerate(seeds):
                for r, rounds in enumerate(RUNGS):
                    found = done.arms[f"lr_{i}"][seed].clients(rounds)
                    for client, loss in zip(found["client"].to_pylist(), found["loss"].to_pylist(), strict=True):
                        losses[s, i, r, client] = math.nan if loss is None else loss
    return losses


def replay(losses: np.ndarray, asked: int, draws: int) -> dict[str, list[float]]:
    """Return search -> its regret in each repetition, a mean over `draws` of who is asked and what is tried."""
    regrets: dict[str, list[float]] = {"halving": [], "random": []}
    for s, of_seed in enumerate(losses):
        scored = np.flatnonzero(~np.isnan(of_seed).any((0, 1)))
        full = of_seed[:, -1, scored].mean(1)
        sums = dict.fromkeys(regrets, 0.0)
        for draw in range(draws):
            rng = np.random.default_rng([s, asked, draw])

            def judge(
                c: int,
                rung: int,
                rng: np.random.Generator = rng,
                of_seed: np.ndarray = of_seed,
                scored: np.ndarray = scored,
            ) -> float:
                who = rng.choice(scored, min(asked, len(scored)), replace=False)
                return float(of_seed[c, rung, who].mean())

            chosen, spent = halving(len(of_seed), judge)
            other, _ = random_search(len(of_seed), spent, rng, judge)
            sums["halving"] += float(full[chosen] - full.min()) / draws
            sums["random"] += float(full[other] - full.min()) / draws
        for name, total in sums.items():
            regrets[name].append(total)
    return regrets


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return (mean, half the width of its 95 % interval, Student's t)."""
    from scipy import stats

    x = np.asarray(values)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    return float(x.mean()), float(half)


def page(found: dict[str, Any]) -> str:
    """Return HPO.md."""
    lines = [
        "# Halving and noise",
        "",
        f"Generated by `{found['command']}`; do not edit. What is run and replayed is said in that file. "
        f"{found['repetitions']} repetitions, {found['rounds']} rounds for halving, {found['rounds_random']} for random search. "
        "Regret: validation loss over all clients of the chosen rate, less the best rate's (nats); means and 95 % intervals over "
        "repetitions, differences paired.",
        "",
        "| clients asked | halving's regret | random search's | halving less random |",
        "|---|---|---|---|",
    ]
    for m, r in found["regrets"].items():
        gap = [a - b for a, b in zip(r["halving"], r["random"], strict=True)]
        cells = ["{:.3f} ± {:.3f}".format(*interval(v)) for v in (r["halving"], r["random"], gap)]
        lines.append(f"| {m} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "; ".join(f"{k} {v}" for k, v in found["about"].items()), ""])


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--repetitions", type=int, default=20)
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    from watch import about

    repetitions, rates, clients = (2, RATES[::4], 6) if a.tiny else (a.repetitions, RATES, 20)
    losses = table(rates, range(1000, 1000 + repetitions), clients)
    _, spent = halving(len(rates), lambda c, rung: float(c))
    found: dict[str, Any] = {
        "about": about(), "command": " ".join(["python", "benchmarks/hpo_noise.py", *sys.argv[1:]]),
        "repetitions": repetitions, "rounds": spent,
        "rounds_random": max(1, spent // RUNGS[-1]) * RUNGS[-1], "rates": list(rates),
        "regrets": {str(m): replay(losses, m, 5 if a.tiny else 100) for m in ASKED},
        "losses": np.nanmean(losses, -1).tolist(),
    }  # fmt: skip
    out = a.out or (None if a.tiny else HERE)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "hpo.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (out / "HPO.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
