"""A little is enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from rayfed.attack.little_is_enough import largest_z
from tests.unit.attack.attacks import make

ROWS = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, -4.0], [2.0, 5.0, 1.0]])


def test_so_many_standard_deviations_below_the_mean() -> None:
    made = make("little_is_enough", z=1.5).craft(torch.as_tensor(ROWS), asked=12)
    assert np.allclose(made.numpy(), ROWS.mean(0) - 1.5 * ROWS.std(0), rtol=0, atol=1e-14)


def test_the_papers_z() -> None:
    """Of 50 clients 24 attack: s = 26 - 24 = 2 of 26 honest ones, Phi(z) < 24 / 26: z is 1.43 (the paper's example)."""
    assert largest_z(50, 24) == pytest.approx(stats.norm.ppf(24 / 26)) == pytest.approx(1.426, abs=1e-3)
    assert largest_z(15, 3) == pytest.approx(0.21, abs=1e-2)
    assert largest_z(4, 3) > 4 and largest_z(4, 1) == 0.0
    made = make("little_is_enough").craft(torch.as_tensor(ROWS), asked=15)
    assert np.allclose(made.numpy(), ROWS.mean(0) - largest_z(15, 3) * ROWS.std(0), rtol=0, atol=1e-14)


def test_one_attacker_has_no_spread() -> None:
    assert make("little_is_enough").craft(torch.as_tensor(ROWS[:1]), asked=9).tolist() == ROWS[0].tolist()
