"""Label skew by Dirichlet, in the meaning "per class over clients".

For every class, p ~ Dir(alpha) over the clients shares out its examples (Yurochkin et al. 2019; Li et al. 2022, "label
distribution skew"). The other meaning of the same words, one label distribution ~ Dir(alpha) per client (Hsu et al. 2019),
keeps client sizes equal; this one skews sizes too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.partition import Owned, top_up, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Clients below `min_examples` get single examples moved over from the largest ones; nothing is drawn again."""
    p = f.partition

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        client = np.empty(len(y), np.int64)
        for c in np.unique(y):
            rows = rng.permutation(np.flatnonzero(y == c))
            upto = np.rint(np.cumsum(rng.dirichlet(np.full(n, p.alpha)))[:-1] * len(rows))
            client[rows] = np.searchsorted(upto, np.arange(len(rows)), side="right")
        return top_up(client, n, p.min_examples, rng)

    return within_groups(f, dataset, group, draw, deal, p.min_examples)
