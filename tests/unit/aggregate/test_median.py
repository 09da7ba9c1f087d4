"""Coordinate median against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.aggregate.updates import PLANE, make


@pytest.mark.parametrize("n", [1, 2, 6, 7])
def test_numpys_median(n: int) -> None:
    assert np.allclose(
        make("median").combine(torch.as_tensor(PLANE[:n])).numpy(), np.median(PLANE[:n], axis=0), atol=1e-15
    )


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, 9.0], [3.0, -4.0], [2.0, 0.0], [100.0, 1.0]])
    assert make("median").combine(rows).tolist() == [2.5, 0.5]
