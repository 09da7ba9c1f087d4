"""Partition kind iid."""

from __future__ import annotations

import numpy as np

from rayfed import partition
from tests.unit.partition.tables import GROUPS, conf, images, table


def test_iid_sizes_differ_by_at_most_one() -> None:
    f = partition.build(conf(clients=7, split={"test": 0}), table(np.arange(200) % 4))
    assert sorted(f.train.sizes()) == [28] * 3 + [29] * 4
    f = partition.build(conf(clients=7, groups=GROUPS["rotation"], split={"test": 0}), images(200))
    for g in range(3):
        assert np.ptp(f.train.sizes()[f.group == g]) <= 1


def test_iid_mixes_the_rows() -> None:
    f = partition.build(conf(clients=4, split={"test": 0}), table(np.repeat(np.arange(4), 250)))
    assert np.abs(f.class_counts - 62.5).max() < 30  # the rows are sorted by class: cutting them would give 0 and 250
