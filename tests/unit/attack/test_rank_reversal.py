"""Reversed ranks."""

from __future__ import annotations

import torch

from rayfed import tree
from tests.unit.attack.attacks import KEY, UPDATE, make


def test_by_hand() -> None:
    """Of 1, -2, 0.5, 4 the largest value goes where the smallest was, and so on."""
    made = make("rank_reversal").change(UPDATE, KEY)
    assert made["w"].tolist() == [[0.5, 4.0], [1.0, -2.0]] and made["b"].tolist() == [-1, 3]


def test_twice_is_nothing() -> None:
    reverse = make("rank_reversal")
    assert tree.same(reverse.change(reverse.change(UPDATE, KEY), KEY), UPDATE)
    ties = {"x": torch.tensor([1.0, 1.0, 2.0])}
    assert sorted(reverse.change(ties, KEY)["x"].tolist()) == [1.0, 1.0, 2.0]
