"""Trimmed mean against SciPy's, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.unit.aggregate.updates import PLANE, make


@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_scipys_trimmed_mean(f: int) -> None:
    ours = make("trimmed_mean", f=f).combine(torch.as_tensor(PLANE)).numpy()
    assert np.allclose(ours, stats.trim_mean(PLANE, (f + 0.5) / 7, axis=0), rtol=0, atol=1e-14)


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, 9.0], [3.0, -4.0], [2.0, 0.0], [100.0, 1.0]])
    assert make("trimmed_mean", f=1).combine(rows).tolist() == [2.5, 0.5]
