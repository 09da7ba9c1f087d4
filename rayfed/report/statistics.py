"""Statistics of reports: means over seeds with their intervals, and the worst clients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
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


def paired_difference(values: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, Any]:
    """Return what values by seed are minus those of a reference with the same seeds: mean, 95 % interval and n."""
    differences = [values[s] - reference[s] for s in values if s in reference]
    mean, _, half = mean_interval(differences)
    ci = None if mean is None or half is None else [mean - half, mean + half]
    return {"mean": mean, "ci95": ci, "n": len(differences)}


def worst_decile(values: Sequence[float], lower_is_better: bool = False) -> float:
    """Return the mean over the worst tenth of the clients, at least one of them."""
    ranked = sorted(values, reverse=lower_is_better)
    return statistics.fmean(ranked[: math.ceil(len(ranked) / 10)])
