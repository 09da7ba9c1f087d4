"""Statistics of reports and claims: means over seeds with their intervals, paired tests, and the worst clients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None where undefined."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return mean, sample standard deviation, and half the width of the mean's two-sided 95 % interval by Student's t.

    None where undefined: everything if a value is not finite, the last two with fewer than two values.
    """
    if not all(math.isfinite(v) for v in values):
        return None, None, None
    mean, sd = mean_sd(values)
    if sd is None:
        return mean, None, None
    from scipy.stats import t

    return mean, sd, float(t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))


@dataclass(frozen=True)
class Paired:
    """A paired comparison: n differences, their mean and sample standard deviation, the mean's two-sided confidence interval,
    p of a two-sided t-test against 0, and the effect size mean / sd (Cohen's d_z); None where undefined."""

    n: int
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    p: float | None
    effect: float | None


def compare_pairs(differences: Sequence[float], alpha: float = 0.05) -> Paired:
    """Return the paired comparison with the interval of confidence 1 - alpha, by Student's t.

    Differences that are all equal have an interval of no width, p 0 (1 where they are 0) and no effect size.
    """
    n = len(differences)
    if not all(math.isfinite(v) for v in differences):
        return Paired(n, None, None, None, None, None)
    mean, sd = mean_sd(differences)
    if mean is None or sd is None:
        return Paired(n, mean, None, None, None, None)
    if sd == 0:
        return Paired(n, mean, 0.0, (mean, mean), 0.0 if mean else 1.0, None)
    from scipy.stats import t

    error = sd / math.sqrt(n)
    half = float(t.ppf(1 - alpha / 2, n - 1)) * error
    return Paired(n, mean, sd, (mean - half, mean + half), float(2 * t.sf(abs(mean) / error, n - 1)), mean / sd)


def equal_within(interval: Sequence[float], bound: float) -> bool:
    """Return whether two one-sided tests both reject a mean difference of `bound` or more (Schuirmann 1987).

    interval: of confidence 1 - 2 alpha, where alpha is the tests' level.
    """
    return -bound < interval[0] and interval[1] < bound


def detectable(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the least mean difference that a paired two-sided t-test of n differences finds with this power."""
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    critical = float(t.ppf(1 - alpha / 2, n - 1))

    def missing(noncentrality: float) -> float:
        return power - float(nct.sf(critical, n - 1, noncentrality))  # the other tail is next to nothing

    most = 1.0
    while missing(most) > 0:
        most *= 2
    return float(brentq(missing, 0.0, most)) * sd / math.sqrt(n)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number by Holm (1979); None stays None and is not counted."""
    known = sorted((v, i) for i, v in enumerate(p) if v is not None)
    out: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (v, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * v))
        out[i] = largest
    return out


def spent_alpha(looks: Sequence[int], alpha: float = 0.05) -> list[float]:
    """Return the level of each look at a growing number of seeds, so that all looks together err with probability <= alpha.

    What may be spent until a share t of the seeds is alpha ln(1 + (e - 1) t) (Lan and DeMets 1983, after Pocock); each look's
    level is what it adds, which needs no joint distribution (Bonferroni).
    """
    spent = [alpha * math.log(1 + (math.e - 1) * n / looks[-1]) for n in looks]
    return [b - a for a, b in zip([0.0, *spent], spent, strict=False)]


def paired_difference(values: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, Any]:
    """Return what values by seed are minus those of a reference with the same seeds: mean, 95 % interval and n."""
    differences = [values[s] - reference[s] for s in values if s in reference]
    found = compare_pairs(differences)
    return {"mean": found.mean, "ci95": None if found.interval is None else list(found.interval), "n": found.n}


def worst_decile(values: Sequence[float], lower_is_better: bool = False) -> float:
    """Return the mean over the worst tenth of the clients, at least one of them."""
    ranked = sorted(values, reverse=lower_is_better)
    return statistics.fmean(ranked[: math.ceil(len(ranked) / 10)])
