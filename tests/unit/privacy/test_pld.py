"""dp-accounting, where it is installed."""

from __future__ import annotations

import pytest

from rayfed.privacy import exact, pld

pytest.importorskip("dp_accounting")


def test_a_known_value() -> None:
    assert pld.epsilon(0.01, 1.0, 1000, 1e-5) == pytest.approx(1.828, abs=1e-3)


def test_without_sampling_it_is_the_closed_form() -> None:
    assert pld.epsilon(1.0, 4.0, 10, 1e-5) == pytest.approx(exact.epsilon(1.0, 4.0, 10, 1e-5), abs=1e-3)
