"""The lower bound that right guesses give."""

from __future__ import annotations

import math

import pytest

from rayfed.privacy.audit import chance, lower_bound


@pytest.mark.parametrize("guesses", [10, 100])
def test_by_hand_without_delta(guesses: int) -> None:
    """All right: of epsilon the chance is (e^epsilon / (1 + e^epsilon))^r, which is 1/20 where e^-epsilon = 20^(1/r) - 1."""
    wanted = -math.log(20 ** (1 / guesses) - 1)
    assert lower_bound(guesses, guesses, guesses, 0.0, 0.95) == pytest.approx(wanted, abs=1e-6)


def test_of_luck_nothing_follows() -> None:
    assert lower_bound(100, 100, 50, 1e-5, 0.95) == 0.0 == lower_bound(100, 100, 55, 1e-5, 0.95)
    assert lower_bound(100, 100, 70, 1e-5, 0.95) > 0.3


def test_more_right_guesses_more_confidence_and_delta() -> None:
    found = [lower_bound(100, 100, v, 1e-5, 0.95) for v in (60, 70, 80, 90, 100)]
    assert found == sorted(found)
    assert lower_bound(100, 100, 80, 1e-5, 0.99) < found[2]
    assert lower_bound(100, 100, 80, 1e-3, 0.95) < found[2] < lower_bound(100, 100, 80, 0.0, 0.95)
    with pytest.raises(ValueError, match="right: 11 of 10"):
        lower_bound(100, 10, 11, 1e-5, 0.95)


def test_the_part_of_delta_in_two_guesses() -> None:
    """One guess, right, epsilon 0: W is 0 or 1 with 1/2 each, so 1/2 + 2 m delta / 2."""
    assert chance(5, 1, 1, 0.01, 0.0) == pytest.approx(0.5 + 2 * 5 * 0.01 * 0.5)
