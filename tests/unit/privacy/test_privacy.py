"""Which accountant is taken, and the noise that a budget needs."""

from __future__ import annotations

import pytest

from rayfed import privacy


def test_auto_is_the_closed_form_where_everybody_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert privacy.choose("auto", 1.0) == "exact" and privacy.choose("pld", 1.0) == "pld"
    there = {"prv_accountant", "dp_accounting"}
    monkeypatch.setattr("rayfed.privacy.importlib.util.find_spec", lambda name: name if name in there else None)
    assert privacy.choose("auto", 0.1) == "prv"
    there.remove("prv_accountant")
    assert privacy.choose("auto", 0.1) == "pld"
    there.clear()
    assert privacy.choose("auto", 0.1) == "prv" and privacy.missing("prv") == "prv_accountant"
    assert privacy.missing("exact") is None


@pytest.mark.parametrize(("releases", "budget"), [(1, 8.0), (100, 1.0), (1000, 0.1)])
def test_the_noise_for_a_budget_is_the_least_of_three_digits(releases: int, budget: float) -> None:
    z = privacy.noise_for("exact", 1.0, releases, 1e-5, budget)
    assert privacy.epsilon("exact", 1.0, z, releases, 1e-5) <= budget
    assert privacy.epsilon("exact", 1.0, 0.99 * z, releases, 1e-5) > budget


def test_nothing_released_is_nothing_spent() -> None:
    assert privacy.epsilon("prv", 0.1, 1.0, 0, 1e-5) == 0.0
