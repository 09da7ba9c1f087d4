"""Quantity skew: client sizes ~ Dir(alpha), labels independent of the client (Li et al. 2022, NIID-Bench)."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.partition import Owned, top_up, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: a shuffle cut by one draw of Dir(alpha) over a group's clients; those below `min_examples` get
    single examples of the largest ones."""
    p = f.partition

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        upto = np.rint(np.cumsum(rng.dirichlet(np.full(n, p.alpha)))[:-1] * len(y))
        client = np.searchsorted(upto, np.arange(len(y)), side="right")
        return top_up(rng.permutation(client), n, p.min_examples, rng)

    return within_groups(f, dataset, group, draw, deal, p.min_examples)
