"""Partition kind longtail."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import partition
from tests.unit.partition.blobs import EVEN, N, conf


@pytest.mark.parametrize(("imbalance", "by_hand"), [(100, [100, 22, 5, 1]), (10, [100, 46, 22, 10]), (1, [100] * 4)])
def test_class_counts_follow_the_imbalance(imbalance: float, by_hand: list[int]) -> None:
    p = {"kind": "longtail", "alpha": 100, "imbalance": imbalance}
    f = partition.build(conf(clients=5, partition=p), EVEN)
    assert f.class_counts.sum(0).tolist() == by_hand
    assert f.pooled_test.tolist() == list(range(N, N + 80))
    f = partition.build(conf(clients=5, partition={**p, "test": "tail"}), EVEN)
    asked = np.bincount(EVEN.test.y[f.pooled_test - N])
    assert asked.tolist() == [max(1, round(20 * imbalance ** (-c / 3))) for c in range(4)]


def test_the_tail_is_dealt_as_dirichlet_deals() -> None:
    skew = [
        (lambda n: (n / n.sum(0)).var())(
            partition.build(conf(partition={"kind": "longtail", "alpha": a, "imbalance": 2}), EVEN).class_counts
        )
        for a in (0.1, 100)
    ]
    assert skew[0] > 20 * skew[1]
