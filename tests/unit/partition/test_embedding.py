"""Partition kind embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed import partition
from rayfed.data import Dataset, Part
from rayfed.partition.embedding import allocate, clusters, columns
from tests.unit.partition.blobs import conf


class Known:
    """A generator whose Dirichlet draws are known, and the others real."""

    def __init__(self, *q: list[list[float]]):
        self.q, self.asked, self.rng = list(q), [], np.random.default_rng(0)

    def dirichlet(self, prior: np.ndarray, size: Any) -> np.ndarray:
        self.asked.append(prior.tolist())
        many = size[0] if isinstance(size, tuple) else None
        return np.array(self.q[0]) if many is None else np.array([self.q[i % len(self.q)] for i in range(many)])

    def permutation(self, x: Any) -> np.ndarray:
        return self.rng.permutation(x)

    def random(self, n: int) -> np.ndarray:
        return self.rng.random(n)


def test_rows_of_a_cluster_go_where_q_says() -> None:
    """Q^T n = s for n = (40, 40, 20) has one solution; a draw whose solution is negative is not taken."""
    q = [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75], [0.0, 0.5, 0.5]]
    s = np.array(q).T @ [40, 40, 20]
    negative = [[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0]]
    rng = Known(negative, q)
    got = allocate(s.astype(int), 3, 2.0, 5, 100, rng)  # type: ignore[arg-type]
    assert got is not None
    assert rng.asked == [(2.0 * s / 100).tolist()]
    assert np.abs(got - np.array(q) * np.array([[40], [40], [20]])).max() <= 1 and (got.sum(0) <= s).all()
    assert allocate(s.astype(int), 3, 2.0, 5, 100, Known(negative)) is None  # type: ignore[arg-type]
    assert allocate(s.astype(int), 3, 2.0, 21, 100, Known(q)) is None  # type: ignore[arg-type]


def test_columns_leave_no_row_and_share_clusters_in_proportion() -> None:
    q = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
    code = np.repeat([0, 1, 2], [30, 10, 20])
    client = columns(code, np.array([30, 10, 20]), 2, 1.0, 1, Known(q))  # type: ignore[arg-type]
    assert [np.bincount(client[code == c], minlength=2).tolist() for c in range(3)] == [[15, 15], [5, 5], [10, 10]]


def test_clients_follow_clusters_not_labels() -> None:
    """Each class has two far-apart modes: clusters are modes, and small alpha makes clients differ in them."""
    rng = np.random.default_rng(0)
    mode = np.arange(1200) % 4
    x = (np.eye(4)[mode] * 10 + rng.normal(size=(1200, 4))).astype(np.float32)
    d = Dataset("modes", Part(x, mode % 2), Part(x[:8], mode[:8] % 2), 2, ("0", "1"), "tabular")
    p = {"kind": "embedding", "embedding": "pca", "clusters": 4, "min_examples": 20}
    cluster = clusters(conf(partition={**p, "alpha": 1}).federation.partition, d, partition.draws(0))
    assert len(set(zip(mode.tolist(), cluster.tolist()))) == 4

    def distance(alpha: float) -> float:
        f = partition.build(conf(partition={**p, "alpha": alpha}), d)
        means = np.array([x[f.train[k]].mean(0) for k in range(10)])
        return float(np.mean([np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]]))

    skewed, even = distance(0.3), distance(1e4)
    assert skewed > 6 and even < 1
    f = partition.build(conf(partition={**p, "alpha": 1e5}), d)
    share = np.array([np.bincount(cluster[f.train[k]], minlength=4) for k in range(10)]) / f.train.sizes()[:, None]
    assert np.abs(share - 0.25).max() < 0.03  # alpha to infinity: the global ratios
