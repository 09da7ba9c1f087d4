"""Random updates."""

from __future__ import annotations

import pytest
import torch

from rayfed import keys, tree
from tests.unit.attack.attacks import KEY, UPDATE, make


def test_numbers_follow_from_the_key() -> None:
    made = make("noise", size=2.0).change(UPDATE, KEY)
    assert torch.equal(made["w"], 2 * keys.normal(keys.fold(KEY, 0), (2, 2)))
    assert torch.equal(made["b"], 2 * keys.normal(keys.fold(KEY, 1), (2,)))
    assert not torch.equal(made["b"], make("noise", size=2.0).change(UPDATE, KEY + 1)["b"])


def test_added_or_in_its_place() -> None:
    alone, added = (make("noise", draw="uniform", size=3.0, add=a).change(UPDATE, KEY) for a in (False, True))
    assert tree.same(added, tree.add(UPDATE, alone))


def test_their_size() -> None:
    many = {"x": torch.zeros(100_000, dtype=torch.float64)}
    normal, uniform = (make("noise", draw=d, size=4.0).change(many, KEY)["x"] for d in ("normal", "uniform"))
    assert float(normal.std()) == pytest.approx(4, rel=0.02) and float(normal.mean()) == pytest.approx(0, abs=0.05)
    assert (
        float(uniform.mean()) == pytest.approx(2, rel=0.02) and float(uniform.min()) >= 0 and float(uniform.max()) < 4
    )
