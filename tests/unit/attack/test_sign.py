"""Sign flip."""

from __future__ import annotations

from tests.unit.attack.attacks import KEY, UPDATE, make


def test_by_hand() -> None:
    made = make("sign", strength=10.0).change(UPDATE, KEY)
    assert made["w"].tolist() == [[-10, 20], [-5, -40]] and made["b"].tolist() == [-30, 10]
