"""Scaled updates."""

from __future__ import annotations

from tests.unit.attack.attacks import KEY, UPDATE, make


def test_by_hand() -> None:
    made = make("scale", factor=2.0).change(UPDATE, KEY)
    assert made["w"].tolist() == [[2, -4], [1, 8]] and made["b"].tolist() == [6, -2]
