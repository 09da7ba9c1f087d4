"""Intervals over seeds and test rows: a mean difference whose seeds and whose test rows are both samples.

Runs with other seeds are scored on the same test rows, so an interval over seeds alone says what other seeds would give on these
rows, not what other rows would give. Seeds and rows are crossed random effects, as readers and cases are where several readers
judge the same pictures: Dorfman, Berbaum and Metz 1992 (Invest. Radiol. 27), Hillis 2007 (Stat. Med. 26); degrees of freedom by
Satterthwaite 1946.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayfed.storage import row_scores

if TYPE_CHECKING:
    import numpy as np

    from rayfed.report.subject import RunRecord


@dataclass(frozen=True)
class RowValues:
    """What one run scored on each row: rows (n,) of the data, client after client, values (n,), the clients' sizes, and the rows'
    weights (n,) in the metric, which sum to 1."""

    rows: np.ndarray
    values: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, metric: str, rows: np.ndarray, values: np.ndarray, sizes: np.ndarray) -> RowValues:
        """Make it for a metric: rows count alike in scope `global` and in means over examples, clients in the others."""
        import numpy as np

        if metric.endswith(("/global", "_ex")):
            return cls(rows, values, sizes, np.full(len(rows), 1 / max(1, len(rows))))
        per_client = 1 / (np.maximum(sizes, 1) * max(1, int((sizes > 0).sum())))
        return cls(rows, values, sizes, np.repeat(per_client, sizes))


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and rows: its standard error, degrees of freedom, and the number of different rows."""

    mean: float
    error: float
    freedom: float
    rows: int

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Return the two-sided interval of confidence 1 - alpha."""
        if not self.error:
            return self.mean, self.mean
        from scipy.stats import t

        half = float(t.ppf(1 - alpha / 2, self.freedom)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """p of the two-sided test against 0."""
        if not self.error:
            return 0.0 if self.mean else 1.0
        from scipy.stats import t

        return float(2 * t.sf(abs(self.mean) / self.error, self.freedom))


def row_values(run: RunRecord, metric: str, at: int) -> RowValues | None:
    """Return a run's scores by row of a metric at a round; None where they were not kept."""
    name, _, scope = metric.partition("/")
    found = row_scores.read(run.path, at).get(scope.removesuffix("_ex"), {})
    return RowValues.of(metric, found["rows"], found[name], found["sizes"]) if name in found else None


def crossed_difference(
    better: Mapping[str, RowValues], than: Mapping[str, RowValues], seeds: Sequence[str], sign: float = 1.0
) -> Crossed | None:
    """Return the mean difference of two arms over seeds and rows; None with fewer than two seeds, or where one's rows are missing, or
    are not the same in both arms.

    better, than: seed -> what an arm scored; sign: -1 where less is better.
    """
    import numpy as np

    known = [(better[s], than[s]) for s in seeds if s in better and s in than]
    same = (np.array_equal(a.rows, b.rows) and np.allclose(a.weights, b.weights) for a, b in known)
    if len(known) < max(2, len(seeds)) or not all(same):
        return None
    rows, place = np.unique(np.concatenate([a.rows for a, _ in known]), return_inverse=True)
    d, w, first = np.zeros((len(known), len(rows))), np.zeros((len(known), len(rows))), 0
    for s, (a, b) in enumerate(known):
        at = place[first : first + len(a.rows)]
        first += len(a.rows)
        np.add.at(w[s], at, a.weights)
        np.add.at(d[s], at, a.weights * sign * (a.values.astype(float) - b.values))
    return crossed(np.divide(d, w, out=np.zeros_like(d), where=w > 0), w)


def crossed(d: np.ndarray, w: np.ndarray) -> Crossed:
    """Return the mean over S >= 2 seeds of the means over rows of d (S, R) weighted by w (S, R), 0 where a seed lacks a row.

    Its variance is what the seeds' means give, plus what the seeds share because they share rows: with sigma^2 the variance of a
    row's effect, the mean over pairs of seeds of sum_r w_sr w_s'r sigma^2. sigma^2 is estimated by the products of two seeds'
    deviations on a row; below 0 it counts as 0. Where all seeds have all rows and these weigh the same, this is the analysis
    of variance, (MS_seeds + MS_rows - MS_rest) / (S R).
    """
    import numpy as np

    seeds = len(d)
    means = (w * d).sum(1)
    over_seeds = float(means.var(ddof=1)) / seeds
    e = w * (d - means[:, None])
    products = float((e.sum(0) ** 2).sum() - (e**2).sum())  # over pairs of different seeds
    shared = w @ w.T
    unbiased = shared - (w**2) @ w.T - w @ (w**2).T + shared**2  # since each seed's own mean was taken off
    others = ~np.eye(seeds, dtype=bool)
    expected = float(unbiased[others].sum())
    row_variance = max(0.0, products / expected) if expected > 1e-15 else 0.0
    over_rows = row_variance * float(shared[others].mean())
    common = int(((w > 0).sum(0) > 1).sum())
    parts = over_seeds**2 / (seeds - 1) + over_rows**2 / max(1, common - 1)
    total = over_seeds + over_rows
    return Crossed(
        float(means.mean()), math.sqrt(total), total**2 / parts if parts else math.inf, int((w > 0).any(0).sum())
    )
