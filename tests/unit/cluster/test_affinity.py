"""Affinity propagation."""

from __future__ import annotations

import numpy as np

from tests.unit.cluster.evidence import labels, of_exchange
from tests.unit.cluster.test_hdbscan import TWO


def test_two_groups_are_found_again_and_again() -> None:
    found = [labels({"kind": "affinity"}, of_exchange(TWO)) for _ in range(2)]
    assert found[0] == found[1] == [0] * 5 + [1] * 5


def test_few_or_equal_clients_are_one() -> None:
    assert labels({"kind": "affinity"}, of_exchange(TWO[:2])) == [0, 0]
    assert labels({"kind": "affinity"}, of_exchange(np.ones((6, 2)))) == [0] * 6
