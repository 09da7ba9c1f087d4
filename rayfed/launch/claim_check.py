"""Published verdicts, computed again from the values that are published with them: no run is needed, and any clone can do it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayfed.launch.claim_file import drawn_seeds
from rayfed.launch.claim_rows import unpack
from rayfed.report.statistics import mean_sd
from rayfed.report.study import judge_values

COMPUTED = ("n", "mean_difference", "sd", "ci95", "ci95_rows", "rows", "p", "effect", "verdict", "holds")
NEAR = 1e-9  # of what the same numbers give


def has_values(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry holds the values by seed that its verdicts rest on: older ones do not."""
    return all("values" in r for r in entry["results"])


def differences(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each number of an entry that its published values do not give; none if it can be had from them."""
    problems = []
    if entry.get("registered") and entry["seeds"] != drawn_seeds(name, entry["digest"], len(entry["seeds"]), "judge"):
        problems.append(f"{name}: its seeds are not those that follow from its settings")
    for r in entry["results"]:
        problems += [f"{name}: {r['about']}: {p}" for p in _differences(entry, r)]
    return problems


def judged_again(entry: Mapping[str, Any], r: Mapping[str, Any]) -> dict[str, Any]:
    """Judge one of an entry's claims from its published values."""
    sides = [r["values"].get(r[side], {}) for side in ("better", "than")]
    better, than = (unpack(entry.get("rows") or {}, r["metric"], r["at"], r[side]) for side in ("better", "than"))
    found = judge_values(
        r, *sides, rows=(better, than) if better and than else None, seeds=entry["seeds"], alpha=r["alpha"]
    )
    return {**found, "verdict": "unstable", "holds": None} if r.get("unstable") else found


def _differences(entry: Mapping[str, Any], r: Mapping[str, Any]) -> Iterator[str]:
    found = judged_again(entry, r)
    for key in COMPUTED:
        if key in r and not _near(r[key], found[key]):
            yield f"{key} is {found[key]}, published is {r[key]}"
    for arm, values in r["values"].items():
        mean, sd = mean_sd(list(values.values()))
        if not (_near(r["arms"][arm]["mean"], mean) and _near(r["arms"][arm]["sd"], sd)):
            yield f"the mean of {arm} is {mean} ± {sd}, published is {r['arms'][arm]}"
        for seed, by_row in unpack(entry.get("rows") or {}, r["metric"], r["at"], arm).items():
            mean = float(by_row.weights @ by_row.values)
            if not _near(mean, values.get(seed), 1e-6):
                yield f"{arm}, seed {seed}: its rows have the mean {mean}, published is {values.get(seed)}"
    shaken = any((entry.get("stability") or {}).get(r[side], {}).get("unstable") for side in ("better", "than"))
    if shaken and "unstable" not in r and r.get("kind", "difference") == "difference":
        yield "an arm is unstable, and the verdict does not say so"


def _near(a: Any, b: Any, by: float = NEAR) -> bool:
    if isinstance(a, Sequence) and not isinstance(a, str):
        return isinstance(b, Sequence) and len(a) == len(b) and all(_near(x, y, by) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and math.isclose(a, b, rel_tol=by, abs_tol=by)
    return bool(a == b)
