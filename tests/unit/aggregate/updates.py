"""Updates of literal numbers, and what a rule that goes by inner products makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayfed import aggregate
from rayfed.aggregate import Evidence
from rayfed.config.schema import Kind

LINE = np.array([[0.0], [1.0], [2.5], [3.0], [5.0], [50.0], [60.0]])  # five near each other, two far off
PLANE = np.array(
    [
        [1.0, 2.0, -1.0],
        [0.5, 2.5, -0.5],
        [1.5, 1.0, -1.5],
        [0.8, 2.2, -1.1],
        [1.2, 1.9, 0.3],
        [-9.0, 8.0, 7.0],
        [0.9, 1.7, -0.9],
    ]
)


def make(kind: str, **settings: Any) -> Any:
    return aggregate.KINDS.make(Kind.model_validate({"kind": kind, **settings}))


def weigh(rule: Any, updates: np.ndarray, weights: Sequence[float] | None = None, round: int = 2) -> np.ndarray:
    """The coefficients of updates (n, P)."""
    n = len(updates)
    shares = np.full(n, 1 / n) if weights is None else np.asarray(weights) / np.sum(weights)
    return rule.weigh(Evidence(updates @ updates.T, shares, np.arange(n), round))


def nearest(updates: np.ndarray, i: int, count: int) -> float:
    """Krum's score, as the paper says it: squared distances to the `count` nearest others."""
    far = sorted(float(((updates[i] - u) ** 2).sum()) for j, u in enumerate(updates) if j != i)
    return sum(far[:count])
