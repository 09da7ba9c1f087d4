"""What fits on a device, and weights of few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayfed.adapters import budget, normal_float
from rayfed.adapters.budget import Limits, Network

NET = Network(np.array([10, 20]), quantised=800, other=100, head=5, activations=60)


def test_what_a_plan_spends_by_hand() -> None:
    """Ranks (1, 2): 50 entries of adapters and 5 of the head. 800 / 2 + 200 + 16 * 55 + 60 bytes at four bits. A full step, ranks (2, 2),
    is 4 * 900 + 6 * 65 multiplications."""
    ranks = np.array([1, 2])
    assert budget.memory(NET, ranks, 4) == 400 + 200 + 880 + 60
    took = budget.seconds(NET, ranks, Limits(steps=10, speed=2.0, bandwidth=100.0), most=2)
    assert took == pytest.approx(5 * (3600 + 330) / (3600 + 390) + 8 * 55 / 100)


def test_without_limits_everything_is_trained_whole() -> None:
    plan = budget.planned(NET, Limits(), [0.5, 0.5], most=3)
    assert plan is not None and plan.ranks.tolist() == [3, 3] and plan.bits == 16


def test_a_larger_budget_never_gives_less_and_no_plan_spends_more() -> None:
    value, last = np.array([0.2, 0.8]), -1.0
    for room in range(700, 4000, 50):
        plan = budget.planned(NET, Limits(memory=room), value.tolist(), most=4, precisions=[4])
        if plan is None:
            assert last < 0
            continue
        assert plan.memory <= room and plan.ranks @ value >= last
        last = float(plan.ranks @ value)
    assert last == pytest.approx(4.0)
    assert budget.planned(NET, Limits(memory=2000), value.tolist(), most=4).bits == 8  # type: ignore[union-attr]
    assert budget.planned(NET, Limits(memory=100), value.tolist(), most=4) is None


def test_levels_are_quantiles_and_what_is_rounded_stays() -> None:
    levels = normal_float.levels(4)
    assert len(levels) == 16 and 0.0 in levels.tolist() and levels[0] == -1 and levels[-1] == 1
    assert levels[1] == pytest.approx(-0.6962, abs=1e-4) and levels[8] == pytest.approx(
        0.0796, abs=1e-4
    )  # QLoRA's table
    w = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = float((levels[1:] - levels[:-1]).max()) / 2
    for bits, most in ((4, gap), (8, 0.5 / 127)):
        found = normal_float.rounded(w, bits)
        torch.testing.assert_close(normal_float.rounded(found, bits), found)
        assert float((found - w).abs().max()) <= most * float(w.abs().max()) + 1e-12
    assert normal_float.rounded(w, 16) is w and not normal_float.rounded(torch.zeros(7), 4).any()


def test_nearest_by_hand() -> None:
    """Levels (-1, 0, 1) and a block (0.2, -0.8, 0.5): the scale is 0.8, codes (0, -1, 1)."""
    x = torch.tensor([0.2, -0.8, 0.5])
    torch.testing.assert_close(
        0.8 * normal_float.nearest(x / 0.8, torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([0.0, -0.8, 0.8])
    )
