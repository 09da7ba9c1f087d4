"""Partition kind quantity."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import partition
from rayfed.data import Dataset, Part
from tests.unit.partition.blobs import conf


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_sizes_have_the_spread_of_dirichlet(alpha: float) -> None:
    """Var p = (1/n)(1 - 1/n) / (n alpha + 1), over 40 seeds of 20 clients; labels do not depend on the client."""
    n, y = 20, np.arange(4000) % 2
    d = Dataset(
        "t", Part(y[:, None].astype(np.float32), y), Part(np.zeros((0, 1), np.float32), y[:0]), 2, ("0", "1"), "tabular"
    )
    made = [
        partition.build(conf(s, clients=n, partition={"kind": "quantity", "alpha": alpha, "min_examples": 1}), d)
        for s in range(40)
    ]
    share = np.array([f.train.sizes() for f in made]) / 4000
    assert share.sum(1) == pytest.approx(np.ones(40))
    assert share.var() == pytest.approx((1 / n) * (1 - 1 / n) / (n * alpha + 1), rel=0.15)
    large = np.concatenate([f.class_counts[f.train.sizes() > 100] for f in made])
    z = (large[:, 0] - large.sum(1) / 2) / np.sqrt(large.sum(1) / 4)
    assert abs(z.mean()) < 0.25 and z.std() == pytest.approx(1, abs=0.2)
