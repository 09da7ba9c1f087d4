"""Paired bootstrap: is one model's AUROC on the same test rows higher than another's, and by how much?

The card of a comparison of two models on one set of rows, not of two methods over seeds: rows are drawn with replacement, the same lists
for both models and for every comparison on as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS = 1000


@dataclass(frozen=True)
class Bootstrap:
    """A paired comparison: both values on the rows themselves, the 95 % interval of the difference, `p`, the share of lists in which
    the first is not higher, `reverse`, in which the second is not, and how many lists had rows of both kinds."""

    first: float
    second: float
    interval: tuple[float, float]
    p: float
    reverse: float
    lists: int


def counts(n: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return how often each of n rows is in each list, (draws, n): the same for the same n, draws and seed."""
    rng = np.random.default_rng([seed, n])
    return np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(draws)])


def auroc(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve for each row of weights (draws, n), NaN where one kind of rows is missing.

    y (n,) is 0 or 1, scores (n,): the share of pairs of a positive and a negative row in which the positive one is higher, ties half.
    """
    positive = y > 0
    up, down = scores[positive, None], scores[None, ~positive]
    won = (up > down) + 0.5 * (up == down)
    w_up, w_down = weights[:, positive].astype(np.float64), weights[:, ~positive].astype(np.float64)
    pairs = w_up.sum(1) * w_down.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = ((w_up @ won) * w_down).sum(1) / pairs
    return found


def paired_auroc(
    y: np.ndarray, first: np.ndarray, second: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Bootstrap | None:
    """Compare two models' scores (n,) of rows with labels y (n,), 0 or 1; None where the rows are all of one kind."""
    plain = np.ones((1, len(y)))
    whole = [float(auroc(y, s, plain)[0]) for s in (first, second)]
    if np.isnan(whole).any():
        return None
    drawn = counts(len(y), draws, seed)
    a, b = (auroc(y, s, drawn) for s in (first, second))
    there = ~np.isnan(a)
    a, b = a[there], b[there]
    low, high = np.quantile(a - b, [0.025, 0.975])
    shares = float((a <= b).mean()), float((b <= a).mean())
    return Bootstrap(whole[0], whole[1], (float(low), float(high)), *shares, int(there.sum()))
