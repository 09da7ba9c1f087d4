"""One bit for each entry."""

from __future__ import annotations

import torch

from tests.unit.transform.alone import made, there_and_back


def test_by_hand() -> None:
    _, back, _ = there_and_back(made("sign"), torch.tensor([3.0, -1.0, 0.0, -4.0]))
    assert back.tolist() == [2.0, -2.0, 2.0, -2.0]


def test_its_bytes() -> None:
    assert made("sign").size(1000, 32, ()) == (1000, 1, 32)
