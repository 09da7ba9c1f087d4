"""prv-accountant, where it is installed: the known value, and agreement with dp-accounting and the closed form."""

from __future__ import annotations

import pytest

from rayfed.privacy import exact, pld, prv

pytest.importorskip("prv_accountant")


def test_a_known_value() -> None:
    """q 0.01, noise 1, 1,000 releases, delta 1e-5: 1.829 by the package's estimate, 1.828 by privacy loss distributions."""
    assert 1.828 <= prv.epsilon(0.01, 1.0, 1000, 1e-5) <= 1.829 + prv.ERROR


def test_fewer_releases_of_one_accountant_spend_less() -> None:
    found = [prv.epsilon(0.05, 1.2, n, 1e-5) for n in (1, 5, 6, 7, 8, 9)]
    assert found == sorted(found)


@pytest.mark.parametrize(("q", "noise", "releases"), [(0.01, 1.0, 1000), (0.1, 2.0, 100), (0.5, 4.0, 30)])
def test_two_accountants_agree(q: float, noise: float, releases: int) -> None:
    """The estimates to 1e-3; the bound that is reported is above, by no more than it may."""
    pytest.importorskip("dp_accounting")
    other = pld.epsilon(q, noise, releases, 1e-5)
    _, estimate, _ = prv._accountant(q, noise, releases, 1e-5).compute_epsilon(
        delta=1e-5, num_self_compositions=[releases]
    )
    assert abs(estimate - other) <= 1e-3
    assert other <= prv.epsilon(q, noise, releases, 1e-5) <= other + prv.ERROR + 1e-3


def test_the_closed_form_is_their_limit() -> None:
    assert prv.epsilon(1.0, 4.0, 10, 1e-5) == pytest.approx(exact.epsilon(1.0, 4.0, 10, 1e-5), abs=2 * prv.ERROR)
