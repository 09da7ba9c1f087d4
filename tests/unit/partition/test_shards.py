"""Partition kind shards."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import partition
from tests.unit.partition.tables import conf, table


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("per_client", [1, 2, 4])
def test_shards_that_fit_into_classes_hold_one_class_each(per_client: int, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 40))
    c = conf(seed, clients=20, partition={"kind": "shards", "per_client": per_client}, split={"test": 0})
    f = partition.build(c, table(y))
    assert f.train.sizes().tolist() == [20] * 20
    piece = 20 // per_client
    assert (f.class_counts % piece == 0).all()
    assert ((f.class_counts > 0).sum(1) <= per_client).all()
    if per_client > 1:
        assert (f.class_counts > 0).sum(1).max() == per_client


def test_uneven_shards_differ_by_at_most_one() -> None:
    """103 rows in 12 shards: eight or nine each, so that two make 16 to 18; each has at most two classes of 34."""
    y = np.arange(103) % 3
    f = partition.build(conf(clients=6, partition="shards", split={"test": 0}), table(y))
    assert f.train.sizes().sum() == 103 and set(f.train.sizes()) <= {16, 17, 18}
    f = partition.build(
        conf(clients=12, partition={"kind": "shards", "per_client": 1}, split={"test": 0}), table(y)
    )  # fmt: skip
    assert sorted(f.train.sizes()) == [8] * 5 + [9] * 7
    assert ((f.class_counts > 0).sum(1) <= 2).all()
