"""k-means from inner products by brute force over all partitions."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from rayfed.cluster import canonical
from rayfed.cluster.kmeans import kmeans
from tests import toy
from tests.unit.cluster.evidence import labels, of_exchange


def spread(x: np.ndarray, found: Any, w: Any = None) -> float:
    """Weighted sum of squares about the clusters' weighted means."""
    w = np.ones(len(x)) if w is None else w
    found = np.asarray(found)
    return sum(
        float((w[m, None] * (x[m] - np.average(x[m], axis=0, weights=w[m])) ** 2).sum())
        for m in (found == k for k in set(found.tolist()))
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_the_best_of_all_partitions(weighted: bool) -> None:
    """Three bundles far from the origin, from their inner products; 3^7 partitions tried one by one."""
    rng = np.random.default_rng(0)
    x = 50 + rng.normal(size=(7, 4)) + 4 * np.eye(4)[[0, 1, 2, 0, 1, 2, 0]]
    w = rng.integers(1, 9, 7).astype(float) if weighted else None
    best = min(product(range(3), repeat=7), key=lambda p: spread(x, p, w))
    got = kmeans(torch.as_tensor(x @ x.T), 3, 5, weight=w)
    assert got.tolist() == canonical(np.array(best)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_kmeans_weights_decide() -> None:
    """0, 1 and 2.1 on a line, two clusters: equal weights split off 2.1; a heavy 1 and 2.1 split off nothing but 0."""
    x = np.array([[0.0], [1.0], [2.1], [2.1]])
    assert kmeans(torch.as_tensor(x @ x.T), 2, 0).tolist() == [0, 0, 1, 1]
    assert kmeans(torch.as_tensor(x @ x.T), 2, 0, weight=np.array([99.0, 1.0, 0.1, 0.1])).tolist() == [0, 1, 1, 1]


def test_kmeans_of_few_and_through_the_registry() -> None:
    x = np.eye(4)
    assert kmeans(torch.as_tensor(x[:2] @ x[:2].T), 3, 0).tolist() == [0, 1]
    assert kmeans(torch.as_tensor(x @ x.T), 1, 0).tolist() == [0, 0, 0, 0]
    u = np.random.default_rng(1).normal(size=(9, 5)) + 20 * np.eye(5)[[0, 0, 1, 1, 2, 2, 0, 1, 2]]
    assert labels({"kind": "kmeans"}, of_exchange(u)) == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    order = np.random.default_rng(2).permutation(9)
    want = canonical(np.array([0, 0, 1, 1, 2, 2, 0, 1, 2])[order]).tolist()
    assert labels({"kind": "kmeans"}, of_exchange(u[order])) == want


def test_disue_asks_the_clusterer_with_the_updates() -> None:
    """kmeans of DisUE's round is k-means of the updates themselves."""
    spec = {"name": "disue", "clusterer": "kmeans", "clusters": 2, "distill": False}
    done = toy.simulate(spec, executor="vmap", rounds=1, dtype="float64")
    fed = toy.make_fed(toy.config(spec, executor="vmap", dtype="float64"))
    fed.begin(1)
    got = fed.ask(fed.method.train, fed.sample(), shared={"model": done.initial["model"]})
    x = np.stack([np.concatenate([v.numpy().ravel() for v in d.values()]) for d in got.gather("delta").values()])
    best = min(product(range(2), repeat=7), key=lambda p: spread(x, p))
    found = [done.state["assignment"].tolist()[c] for c in got.ids]
    assert canonical(np.array(found)).tolist() == canonical(np.array(best)).tolist()
