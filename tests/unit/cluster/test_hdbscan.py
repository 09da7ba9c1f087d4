"""HDBSCAN: dense groups of directions, and clients of none."""

from __future__ import annotations

import numpy as np

from tests.unit.cluster.evidence import labels, of_exchange

RNG = np.random.default_rng(0)
TWO = np.concatenate([np.eye(6)[0] + 0.05 * RNG.normal(size=(5, 6)), np.eye(6)[1] + 0.05 * RNG.normal(size=(5, 6))])
ALONE = np.array([[0, 0, 1.0, 0, 0, 0], [0, 0, 0.3, -1.0, 0, 0]])


def test_two_groups_are_found_whatever_the_updates_lengths() -> None:
    lengths = np.arange(1, 11)[:, None]
    assert labels({"kind": "hdbscan"}, of_exchange(TWO * lengths)) == [0] * 5 + [1] * 5


def test_clients_of_no_cluster() -> None:
    together = labels({"kind": "hdbscan"}, of_exchange(np.concatenate([TWO, ALONE])))
    assert together == [0] * 5 + [1] * 5 + [2, 2]
    nearest = labels({"kind": "hdbscan", "noise": "nearest"}, of_exchange(np.concatenate([TWO, ALONE])))
    assert nearest[:10] == [0] * 5 + [1] * 5 and set(nearest) == {0, 1}


def test_few_or_equal_clients_are_one() -> None:
    assert labels({"kind": "hdbscan"}, of_exchange(TWO[:3])) == [0, 0, 0]
    assert labels({"kind": "hdbscan"}, of_exchange(np.ones((6, 2)))) == [0] * 6
    assert labels({"kind": "hdbscan"}, of_exchange(np.eye(6))) == [0] * 6
