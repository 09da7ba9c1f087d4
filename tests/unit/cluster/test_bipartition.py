"""CFL's cut by hand and against complete linkage merged pair by pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rayfed.cluster import bipartition
from tests.unit.cluster.evidence import labels, of_exchange


def cut(updates: Any, scale: float = 1.0, weight: Any = None, **settings: Any) -> list[int] | None:
    u = np.asarray(updates, float)
    found = bipartition.bipartition(u @ u.T, bipartition.Settings(**settings), scale, weight)
    return None if found is None else found.tolist()


def test_bipartition_by_hand() -> None:
    """Two pairs that pull apart: mean (0, 0.1), norm 0.1; norms sqrt(1.01)."""
    u = [[1, 0.1], [-1, 0.1], [1, 0.1], [-1, 0.1]]
    assert cut(u, relative=False, eps_1=0.11, eps_2=1.0) == [0, 1, 0, 1]
    assert cut(u, relative=False, eps_1=0.09, eps_2=1.0) is None  # the mean still moves
    assert cut(u, relative=False, eps_1=0.11, eps_2=1.01) is None  # nobody moves any more
    share = 0.1 / math.sqrt(1.01)
    assert cut(u, 2.0, eps_1=share * 1.01, eps_2=0.5) == [0, 1, 0, 1]
    assert cut(u, 2.0, eps_1=share * 0.99, eps_2=0.5) is None
    assert cut(u, 2.0, eps_1=share * 1.01, eps_2=0.51) is None  # largest norm 1.005 against 0.51 * 2
    assert cut(u[:2], eps_1=1.0, eps_2=0.0) is None  # two members are never cut


def test_bipartition_weights_the_mean() -> None:
    u = [[1.0], [1.0], [-2.0]]
    assert cut(u, relative=False, eps_1=0.01, eps_2=1) == [0, 0, 1]
    assert cut(u, relative=False, eps_1=0.01, eps_2=1, weight=[1, 1, 2]) is None  # mean -0.5
    assert cut(u, relative=False, eps_1=0.51, eps_2=1, weight=[1, 1, 2]) == [0, 0, 1]


def test_the_cut_is_sattlers() -> None:
    """Complete linkage on two clusters, merged one pair at a time; every cut leaves somebody on both sides."""
    for seed in range(20):
        u = np.random.default_rng(seed).normal(size=(8, 3))
        c = bipartition.cosines(u @ u.T)
        assert np.array_equal(c, c.T) and (np.diag(c) == 1).all() and (abs(c) <= 1).all()
        groups = [[i] for i in range(8)]
        while len(groups) > 2:
            a, b = min(
                ((a, b) for a in range(len(groups)) for b in range(a)),
                key=lambda ab: max(1 - c[i, j] for i in groups[ab[0]] for j in groups[ab[1]]),
            )
            groups[b] += groups.pop(a)
        want = [0 if (i in groups[0]) == (0 in groups[0]) else 1 for i in range(8)]
        assert cut(u, relative=False, eps_1=99, eps_2=0) == want
        assert set(want) == {0, 1}


def test_bipartition_cuts_until_members_agree() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    corners = np.array([[1.0, 0, -1], [-1, 1, 0], [0, -1, 1]])
    u = corners[truth] + 0.05 * rng.normal(size=(12, 3))
    assert labels({"kind": "bipartition", "eps_1": 0.6}, of_exchange(u), 1) == truth.tolist()
    assert labels({"kind": "bipartition", "eps_1": 0.001}, of_exchange(u), 5) == [0] * 12
    assert labels({"kind": "bipartition"}, of_exchange(np.zeros((4, 3)))) == [0] * 4
    assert labels({"kind": "bipartition"}, of_exchange(np.zeros((0, 3)))) == []
