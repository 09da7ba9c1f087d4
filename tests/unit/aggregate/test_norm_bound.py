"""Bounded norms."""

from __future__ import annotations

import torch

from tests.unit.aggregate.updates import make


def test_by_hand() -> None:
    assert make("norm_bound", norm=2.0).scale(torch.tensor([1.0, 2.0, 8.0, 0.0])).tolist() == [1.0, 1.0, 0.25, 1.0]
