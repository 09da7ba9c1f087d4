"""Independent and identical: a shuffle, cut evenly."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.partition import Owned, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: sizes differ by at most one inside a group."""

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(np.arange(len(y)) % n)

    return within_groups(f, dataset, group, draw, deal, f.partition.min_examples)
