"""Partition kind dirichlet."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from rayfed import partition
from rayfed.data import Dataset, Part
from rayfed.partition import Federation
from rayfed.partition.dirichlet import label_counts
from rayfed.partition.dirichlet import split as split_by_dirichlet
from tests.unit.partition import blobs
from tests.unit.partition.tables import conf, table


def distance(counts: np.ndarray) -> float:
    """Mean Jensen-Shannon distance (base 2) over all pairs of clients."""
    p = counts / counts.sum(1, keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.where(q > 0, q * np.log2(np.where(q > 0, q, 1)), 0).sum(-1)

    i, j = np.triu_indices(len(p), 1)
    js = entropy((p[i] + p[j]) / 2) - (entropy(p[i]) + entropy(p[j])) / 2
    return float(np.sqrt(np.maximum(js, 0)).mean())


def dirichlet(alpha: float, y: np.ndarray, seed: int = 0, clients: int = 10, least: int = 1) -> Federation:
    c = conf(
        seed, clients=clients, partition={"kind": "dirichlet", "alpha": alpha, "min_examples": least}, split={"test": 0}
    )
    return partition.build(c, table(y))


def test_small_alpha_skews_more_than_large_alpha() -> None:
    y = np.arange(2000) % 10
    by_alpha = [np.mean([distance(dirichlet(a, y, s).class_counts) for s in range(3)]) for a in (0.05, 0.5, 5.0, 500.0)]
    assert all(a > b + 0.05 for a, b in pairwise(by_alpha))
    assert by_alpha[0] > 0.7 and by_alpha[-1] < 0.1
    few, many = ((dirichlet(a, y).class_counts > 0).sum(1).mean() for a in (0.05, 500.0))
    assert few < 5 and many == 10


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_the_shares_of_a_class_have_the_spread_of_dirichlet(alpha: float) -> None:
    """Var p_i = (1/n)(1 - 1/n) / (n alpha + 1), here over 400 classes as independent draws."""
    n = 5
    share = dirichlet(alpha, np.repeat(np.arange(400), 50), clients=n).class_counts / 50
    assert share.mean(1) == pytest.approx(np.full(n, 0.2), abs=0.05)
    assert share.var() == pytest.approx(0.16 / (n * alpha + 1), rel=0.1)


class Fixed:
    """A generator whose draws are known."""

    def permutation(self, x: Any) -> np.ndarray:
        return np.arange(x) if isinstance(x, int) else np.asarray(x)

    def dirichlet(self, alpha: np.ndarray) -> np.ndarray:
        assert alpha.tolist() == [0.3] * 3
        return np.array([0.25, 0.5, 0.25])


def test_rows_of_a_class_are_cut_at_the_shares() -> None:
    """Of 8, 4 and 5 rows: 2 + 4 + 2, 1 + 2 + 1, and 1 + 3 + 1 (cuts at 1.25 and 3.75)."""
    c = conf(clients=3, partition={"kind": "dirichlet", "alpha": 0.3, "min_examples": 1})
    d = table(np.repeat([0, 1, 2], [8, 4, 5]))
    owned = split_by_dirichlet(c.federation, d, np.full(3, -1), 0, lambda purpose: Fixed())
    assert owned.client.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 0, 1, 1, 2, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_tiny_alpha_with_many_clients_still_gives_everyone_the_minimum(seed: int) -> None:
    f = dirichlet(0.001, np.arange(600) % 3, seed, clients=50, least=6)
    assert f.train.sizes().sum() == 600 and f.train.sizes().min() == 6
    assert (f.train.sizes() == 6).sum() >= 40  # hardly anybody got that many by the draw


def test_over_labels_sizes_are_equal_and_labels_have_the_spread_of_dirichlet() -> None:
    """With r even over C classes, Var q_c = r(1 - r) / (alpha + 1); drawing m rows from q adds r(1 - r) alpha / (alpha + 1) / m."""
    y = np.arange(20_000) % 4
    d = Dataset(
        "t",
        Part(y[:, None].astype(np.float32), y),
        Part(np.zeros((0, 1), np.float32), y[:0]),
        4,
        tuple("0123"),
        "tabular",
    )
    for alpha in (1.0, 8.0):
        p = {"kind": "dirichlet", "alpha": alpha, "over": "labels"}
        f = partition.build(blobs.conf(2, clients=200, partition=p), d)
        assert f.train.sizes().tolist() == [100] * 200
        assert f.class_counts.sum(0).tolist() == [5000] * 4
        found = (f.class_counts / 100).var()
        assert found == pytest.approx(0.25 * 0.75 * (1 + alpha / 100) / (alpha + 1), rel=0.15)


def test_label_counts_have_both_margins_when_all_want_one_class() -> None:
    q = np.tile([0.98, 0.02, 0.0], (6, 1))
    got = label_counts(q, np.full(6, 10), np.array([20, 20, 20]), np.random.default_rng(0))
    assert got.sum(1).tolist() == [10] * 6 and got.sum(0).tolist() == [20] * 3 and (got >= 0).all()
