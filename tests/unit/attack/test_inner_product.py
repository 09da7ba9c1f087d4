"""Inner-product manipulation."""

from __future__ import annotations

import torch

from tests.unit.attack.attacks import make


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, -2.0], [3.0, 0.0]], dtype=torch.float64)
    assert make("inner_product", epsilon=0.5).craft(rows, asked=9).tolist() == [-1.0, 0.5]
