"""The closed form of Gaussian noise, against the densities and against published values."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed.privacy.exact import epsilon


def test_balle_and_wang_2018() -> None:
    """Section 4: sigma = 3.7304... is the least noise for epsilon 1 at delta 1e-5."""
    assert epsilon(1.0, 3.730632, 1, 1e-5) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("noise", "releases", "delta"), [(1.0, 1, 1e-5), (4.0, 30, 1e-6), (0.5, 3, 1e-3)])
def test_by_numerical_integration(noise: float, releases: int, delta: float) -> None:
    """delta(epsilon) = integral of max(0, p - e^epsilon q), p and q the densities of N(0, s^2) and N(1, s^2)."""
    s = noise / np.sqrt(releases)
    eps = epsilon(1.0, noise, releases, delta)
    x = np.linspace(-40 * s, 40 * s + 1, 2_000_001)
    logs = [-((x - m) ** 2) / (2 * s * s) for m in (0.0, 1.0)]
    p, q = (np.exp(v) / (s * np.sqrt(2 * np.pi)) for v in logs)
    assert np.trapezoid(np.maximum(p - np.exp(eps) * q, 0), x) == pytest.approx(delta, rel=1e-3)


def test_releases_compose_as_less_noise() -> None:
    assert epsilon(1.0, 2.0, 16, 1e-5) == pytest.approx(epsilon(1.0, 0.5, 1, 1e-5), rel=1e-9)


def test_it_knows_no_sampling() -> None:
    with pytest.raises(ValueError, match=r"q: 0\.5 found"):
        epsilon(0.5, 1.0, 1, 1e-5)
