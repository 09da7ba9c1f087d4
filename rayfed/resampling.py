"""Whether one model scores better than another on the same rows: a paired bootstrap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rayfed import keys


class Compared(NamedTuple):
    """What resampling says of a first model against a second one.

    first, second: their scores on all rows; low, high: the middle 95 % of the resamples' differences, first less second; p: the share of
    resamples in which the first one is not better; p_other: in which the second one is not better.
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    p_other: float


def paired(
    score: Callable[[Any, Any], float], y: Any, first: Any, second: Any, resamples: int = 1000, seed: int = 0
) -> Compared:
    """Compare two models by resamples of their test rows, the same ones for both (as in 2504.08584).

    Arguments:
        score: score(y, predictions) -> a number, higher is better, such as scikit-learn's roc_auc_score; where it raises
        ValueError or gives
            NaN (a resample without one of the classes), the resample is drawn anew, for both.
        y: (n, ...) truth; first, second: (n, ...) the models' predictions for the same rows.
        resamples: how many; seed: of their draws.

    Returns a `Compared`. A p of 0 says that it is below 1 / resamples; several sites are several tests, for which nothing is corrected.
    ValueError where there are not as many predictions as rows, or where a hundred draws for one resample have no score.

    Example: a model against itself is better in no resample.

        >>> from sklearn.metrics import roc_auc_score
        >>> y, p = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.4, 0.6])
        >>> paired(roc_auc_score, y, p, p, resamples=50).p
        1.0
    """
    y, first, second = (np.asarray(a) for a in (y, first, second))
    if not len(y) == len(first) == len(second):
        raise ValueError(f"{len(y)} rows, {len(first)} and {len(second)} predictions found; needed: one for each row")
    rng = keys.numpy(keys.key(seed, 0, -1, "paired bootstrap"))

    def of(rows: Any) -> tuple[float, float] | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = float(score(y[rows], first[rows])), float(score(y[rows], second[rows]))
        except ValueError:
            return None
        return None if np.isnan(found).any() else found

    def drawn() -> tuple[float, float]:
        for _ in range(100):
            if (found := of(rng.integers(0, len(y), len(y)))) is not None:
                return found
        raise ValueError("of a hundred resamples of these rows none has a score; needed: rows of every class")

    a, b = np.array([drawn() for _ in range(resamples)]).T
    low, high = np.quantile(a - b, [0.025, 0.975])
    whole = of(slice(None)) or (np.nan, np.nan)
    return Compared(*whole, float(low), float(high), float((a <= b).mean()), float((b <= a).mean()))
