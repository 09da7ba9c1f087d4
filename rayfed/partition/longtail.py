"""A global long tail, then label skew over clients.

Class c of C keeps n_c = n_max * imbalance^(-c / (C - 1)) training rows (Cao et al. 2019, LDAM), which every class then shares
out over the clients by its own Dir(alpha), as `dirichlet` does (CReFF, FedLoGe and others).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rayfed.partition import Owned, within_groups
from rayfed.partition.dirichlet import over_clients


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: those beyond n_c are nobody's. n_max is the largest for which every class has n_c rows (class 0's in a
    balanced set). `test: tail` cuts the pooled test rows in the same way, `balanced` leaves all of them."""
    p = f.partition
    rows = tail(dataset.train.y, dataset.classes, p.imbalance, draw("tail"))
    owned = within_groups(f, dataset, group, draw, over_clients(p.alpha, p.min_examples), p.min_examples, rows=rows)
    if p.test == "balanced":
        return owned
    pooled = np.zeros(len(dataset.test.y), bool)
    pooled[tail(dataset.test.y, dataset.classes, p.imbalance, draw("tail of the test rows"))] = True
    return replace(owned, pooled_test=pooled)


def tail(y: np.ndarray, classes: int, imbalance: float, rng: np.random.Generator) -> np.ndarray:
    """Return the rows kept, sorted: round(n_c) random ones of class c, at least one; classes without rows stay so."""
    have = np.bincount(y, minlength=classes)
    factor = imbalance ** (-np.arange(classes) / max(classes - 1, 1))
    some = have > 0
    if not some.any():
        return np.zeros(0, np.int64)
    n_max = (have[some] / factor[some]).min()
    keep = np.where(some, np.maximum(np.rint(n_max * factor), 1), 0).astype(np.int64)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(y == c))[: keep[c]] for c in range(classes)]))
