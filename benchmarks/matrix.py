"""Which rule of aggregation withstands which attack, beneath four methods: attack x rule x method x share of attackers, over seeds.

    python benchmarks/matrix.py [--methods NAME ...] [--rules NAME ...] [--attacks NAME ...] [--seeds N] [--rounds N] [--out DIR]

Digits, 20 clients in two groups of rotations, Dirichlet 1.0 within, all in every round; FedAvg, DisUE and IFCA with two clusters on an mlp,
FedIT on a vision transformer with LoRA. Nobody attacks, or 10 or 30 % of the clients do. Rules are told the number of attackers at 30 %,
whoever attacks: a server does not know; of IFCA's clusters, which are ruled one by one, half of it. What is judged is accuracy/personal at
the last round (what each client is served, on its own clean test rows), each rule against the mean in the same condition, paired by seed,
and corrected by Holm for all cells of the page.

Writes benchmarks/matrix.json after each method and attack, so that an interrupted command goes on where it was, and benchmarks/MATRIX.md
from it; `--out DIR` puts both elsewhere. The whole of it is 3,744 runs with 8 seeds; MATRIX.md says what it took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.report.statistics import holm
from rayfed.report.study import judge_values

HERE = Path(__file__).resolve().parent
CLIENTS, SHARES, NOBODY, METRIC = 20, (0.1, 0.3), "nobody", "accuracy/personal"
MOST = round(max(SHARES) * CLIENTS)
METHODS: dict[str, dict[str, Any]] = {  # what each changes in the config
    "fedavg": {},
    "disue": {"method": {"name": "disue", "clusters": 2}},
    "ifca": {"method": {"name": "ifca", "clusters": 2}},
    "fedit": {
        "task": {"model": {"name": "hf:${RAYFED_READY}/tiny-vit-digits"}},
        "adapter": {"kind": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]},
        "local": {"optimizer": {"name": "adamw", "lr": 0.01}},
        "method": {"name": "fedit"},
    },
}
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "krum": {"f": MOST},
    "multi_krum": {"f": MOST},
    "median": {},
    "trimmed_mean": {"f": MOST},
    "geometric_median": {},
    "foolsgold": {},
    "norm_bound": {"norm": 1.0},
    "flag": {},
}
ATTACKS: dict[str, dict[str, Any]] = {
    "label_flip": {},
    "sign": {"strength": 10},
    "noise": {"draw": "uniform"},
    "rank_reversal": {},
    "little_is_enough": {},
    "inner_product": {},
}

Cells = dict[str, dict[str, float]]  # "method/attack/share/rule" -> seed -> METRIC


def conditions(attack: str) -> dict[str, list[dict[str, Any]]]:
    """Return share, in words -> `attacks` of the config; of nobody one condition without any."""
    if attack == NOBODY:
        return {"0": []}
    return {f"{s:g}": [{"kind": attack, "clients": s, **ATTACKS[attack]}] for s in SHARES}


def study(method: str, attack: str, rules: Sequence[str], seeds: int, rounds: int) -> dict[str, Any]:
    """Return the study of a method under an attack: an arm for each rule and share, named share/rule."""

    def rule(name: str) -> dict[str, Any]:
        settings = dict(RULES[name])
        if "f" in settings and method == "ifca":
            settings["f"] //= 2
        return {"kind": name, **settings}

    base = {
        "name": f"matrix-{method}-{attack}", "rounds": rounds,
        "task": {"data": "digits", "model": {"name": "mlp", "hidden": [64]}},
        "federation": {
            "clients": CLIENTS, "per_round": None, "partition": {"kind": "dirichlet", "alpha": 1.0},
            "groups": {"kind": "rotation", "count": 2}, "split": {"test": 0.25},
        },
        "local": {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        "method": {"name": "fedavg"}, "evaluate": {"every": rounds}, "resources": {"executor": "vmap"}, "track": [],
        "seeds": list(range(seeds)),
    }  # fmt: skip
    arms = {
        f"{share}/{name}": {"aggregate": rule(name), "attacks": given}
        for share, given in conditions(attack).items()
        for name in rules
    }
    return {**base, **METHODS[method], **_merged(base, METHODS[method]), "arms": _named(arms)}


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that both have, the changes over the base's keys."""
    return {k: {**base[k], **v} for k, v in changes.items() if k in base and k not in ("method",)}


def _named(arms: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms by names that folders can have."""
    return {n.replace("/", "-").replace(".", "_"): a for n, a in arms.items()}


def run(method: str, attack: str, rules: Sequence[str], seeds: int, rounds: int) -> tuple[Cells, float]:
    """Return the cells of a method under an attack, and the seconds that they took."""
    import rayfed
    from rayfed.report.subject import load_study

    began, cells = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as out:
        done = rayfed.run(study(method, attack, rules, seeds, rounds), local=True, out=out, progress=False)
        found = load_study(Path(done.path)).done
        for share in conditions(attack):
            for rule in rules:
                (arm,) = _named({f"{share}/{rule}": None})
                values = {str(r.seed): r.final(METRIC) for r in found[arm]}
                cells[f"{method}/{attack}/{share}/{rule}"] = {s: float(v) for s, v in values.items() if v is not None}
    return cells, time.perf_counter() - began


def verdicts(cells: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return of each cell whose rule is not the mean: `judge_values` against the mean in the same condition, with the `verdict` that is
    left of it where p is corrected for all of them: better or worse only below 0.05."""
    judged = {}
    for name, values in cells.items():
        where, _, rule = name.rpartition("/")
        if rule != "mean" and f"{where}/mean" in cells:
            claim = {"metric": METRIC, "better": rule, "than": "mean"}
            judged[name] = judge_values(claim, values, cells[f"{where}/mean"])
    corrected = dict(zip(judged, holm([j["p"] for j in judged.values()]), strict=True))
    for name, j in judged.items():
        p = corrected[name]
        if j["verdict"] in ("better", "worse") and (p is None or p >= 0.05):
            j["verdict"] = "undecided"
    return judged


MARKS = {"better": " **+**", "worse": " **-**", "undecided": ""}


def page(cells: Mapping[str, Mapping[str, float]], seconds: float, seeds: int, rounds: int) -> str:
    """Return the page."""
    judged = verdicts(cells)
    parts = [n.split("/") for n in cells]
    methods, attacks, rules = (list(dict.fromkeys(p[i] for p in parts)) for i in (0, 1, 3))
    lines = [
        "# Attacks and rules of aggregation", "",
        "Generated by `python benchmarks/matrix.py`; do not edit. Its head says what was run. Cells are the mean of accuracy/personal over "
        f"{seeds} seeds after {rounds} rounds, in percent, at 10 / 30 % attackers; **+** and **-** mark what is better and worse than the "
        "mean of updates in the same condition, paired by seed, at 0.05 corrected by Holm for all cells; = is equal within a point.", "",
        f"{sum(map(len, cells.values())):,} runs, {seconds / 3600:.2f} hours.", "",
        "## What a rule costs when nobody attacks", "",
        "| method | rule | difference to the mean, points [95 % over seeds] | verdict |", "|---|---|---|---|",
    ]  # fmt: skip
    for method in methods:
        for rule in rules:
            j = judged.get(f"{method}/{NOBODY}/0/{rule}")
            if j is not None and j["mean_difference"] is not None:
                low, high = (f"{100 * x:+.1f}" for x in j["ci95"]) if j["ci95"] else ("?", "?")
                lines.append(
                    f"| {method} | {rule} | {100 * j['mean_difference']:+.1f} [{low}, {high}] | {j['verdict']} |"
                )
    for method in methods:
        head = ["rule", *(a if a == NOBODY else a.replace("_", " ") for a in attacks)]
        lines += ["", f"## {method}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for rule in rules:
            row = []
            for attack in attacks:
                at = [f"{method}/{attack}/{share}/{rule}" for share in conditions(attack)]
                row.append(" / ".join(_cell(n, cells, judged) for n in at))
            lines.append(f"| {rule} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(name: str, cells: Mapping[str, Mapping[str, float]], judged: Mapping[str, Mapping[str, Any]]) -> str:
    values = list(cells.get(name, {}).values())
    if not values:
        return "-"
    verdict = str(judged[name]["verdict"]) if name in judged else "undecided"
    return f"{100 * sum(values) / len(values):.1f}{MARKS.get(verdict, ' =')}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help="the mean is always among them")
    parser.add_argument(
        "--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS), help="nobody's is always among them"
    )
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE)
    asked = parser.parse_args(argv)
    rules = list(dict.fromkeys(["mean", *asked.rules]))
    kept = asked.out / "matrix.json"
    settings = {"seeds": asked.seeds, "rounds": asked.rounds, "rules": rules}
    asked.out.mkdir(parents=True, exist_ok=True)
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if known.get("settings") != settings:
        known = {"settings": settings, "cells": {}, "seconds": {}}
    for method in asked.methods:
        for attack in (NOBODY, *asked.attacks):
            name = f"{method}/{attack}"
            if name not in known["seconds"]:
                cells, seconds = run(method, attack, rules, asked.seeds, asked.rounds)
                known["cells"] |= cells
                known["seconds"][name] = seconds
                kept.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
                print(f"{name}: {len(cells)} cells, {seconds:.0f} s", flush=True)
    text = page(known["cells"], sum(known["seconds"].values()), asked.seeds, asked.rounds)
    (asked.out / "MATRIX.md").write_text(text, encoding="utf-8")
    print(asked.out / "MATRIX.md")


if __name__ == "__main__":
    main()
