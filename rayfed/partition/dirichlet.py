"""Label skew by Dirichlet, in either meaning of the words.

`over: clients`: for every class, p ~ Dir(alpha) over the clients shares out its examples (Yurochkin et al. 2019; Li et al.
2022, "label distribution skew"); client sizes are skewed too.
`over: labels`: for every client, q ~ Dir(alpha r) over the classes, r the classes' shares in the data, which sum to one (Hsu
et al. 2019); client sizes are equal. Where others write Dir(alpha' 1), with alpha' for each of C even classes, alpha = C alpha'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rayfed.partition import Owned, top_up, within_groups

Deal = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: all are dealt. Over clients: who is below `min_examples` gets single examples of the largest
    ones; nothing is drawn again. Over labels: see `label_counts`."""
    p = f.partition
    deal = over_clients(p.alpha, p.min_examples) if p.over == "clients" else over_labels(p.alpha)
    return within_groups(f, dataset, group, draw, deal, p.min_examples)


def over_clients(alpha: float, least: int) -> Deal:
    """Return deal(y, clients, rng) of `within_groups`: each class shared out by its own Dir(alpha) over the clients."""

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        client = np.empty(len(y), np.int64)
        for c in np.unique(y):
            rows = rng.permutation(np.flatnonzero(y == c))
            upto = np.rint(np.cumsum(rng.dirichlet(np.full(n, alpha)))[:-1] * len(rows))
            client[rows] = np.searchsorted(upto, np.arange(len(rows)), side="right")
        return top_up(client, n, least, rng)

    return deal


def over_labels(alpha: float) -> Deal:
    """Return deal(y, clients, rng) of `within_groups`: one label distribution per client, sizes that differ by at most one."""

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        _, code, have = np.unique(y, return_inverse=True, return_counts=True)
        q = rng.dirichlet(alpha * have / len(y), size=n)
        sizes = np.bincount(np.arange(len(y)) % n, minlength=n)
        return hand_out(code, label_counts(q, sizes, have, rng), rng)

    return deal


def label_counts(q: np.ndarray, sizes: np.ndarray, have: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return (n, C) examples of each class per client: rows sum to `sizes` (n,), columns to `have` (C,).

    Every client draws its examples from its q (n, C), without replacement over all clients: a class that more ask for than
    there are gives all it has to a random choice of the askers, who draw again among the classes that are left (by what is
    left where their q has nothing there). At most C + 1 turns.
    """
    got = np.zeros(q.shape, np.int64)
    left, want = have.astype(np.int64), sizes.astype(np.int64)
    while want.any():
        p = np.where(left > 0, q, 0.0)
        total = p.sum(1, keepdims=True)
        p = np.where(total > 1e-12, p / np.maximum(total, 1e-12), left / left.sum())
        p /= p.sum(1, keepdims=True)
        asked = rng.multinomial(want, p)
        for c in np.flatnonzero(asked.sum(0) > left):
            asked[:, c] = rng.multivariate_hypergeometric(asked[:, c], left[c], method="marginals")
        got += asked
        left, want = left - asked.sum(0), want - asked.sum(1)
    return got


def hand_out(code: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the client of each row (m,), -1 for the rest: of code c, client i gets counts[i, c] rows at random; code (m,) 0..C-1."""
    client = np.full(len(code), -1, np.int64)
    for c in range(counts.shape[1]):
        rows = rng.permutation(np.flatnonzero(code == c))[: counts[:, c].sum()]
        client[rows] = np.repeat(np.arange(len(counts)), counts[:, c])
    return client
