"""Label skew by Dirichlet: for every class, its examples are shared out among clients by p ~ Dir(alpha) (Yurochkin et al.
2019; Li et al. 2022). The other meaning of the same words, one label distribution per client (Hsu et al. 2019), keeps
client sizes equal; this one skews sizes too."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.partition import Owned, top_up, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, rng: Any) -> Owned:
    """Clients below `min_examples` are topped up with single examples of the largest ones."""
    p = f.partition

    def deal(y: np.ndarray, n: int, r: np.random.Generator) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = [[] for _ in range(n)]
        for c in np.unique(y):
            rows = r.permutation(np.flatnonzero(y == c))
            cuts = (np.cumsum(r.dirichlet(np.full(n, p.alpha)))[:-1] * len(rows)).round().astype(int)
            for i, piece in enumerate(np.split(rows, cuts)):
                parts[i].append(piece)
        return top_up([np.concatenate(x) for x in parts], p.min_examples)

    return within_groups(f, dataset, group, rng, deal)
