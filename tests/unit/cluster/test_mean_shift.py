"""Mean shift."""

from __future__ import annotations

import numpy as np

from tests.unit.cluster.evidence import labels, of_exchange
from tests.unit.cluster.test_hdbscan import TWO


def test_two_groups_are_never_mixed() -> None:
    found = labels({"kind": "mean_shift"}, of_exchange(TWO))
    assert not set(found[:5]) & set(found[5:]) and len(set(found)) <= 4


def test_one_client_and_equal_ones_are_one() -> None:
    assert labels({"kind": "mean_shift"}, of_exchange(TWO[:1])) == [0]
    assert labels({"kind": "mean_shift"}, of_exchange(np.ones((6, 2)))) == [0] * 6
