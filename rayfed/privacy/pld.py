"""Privacy loss distributions, by the package dp-accounting."""

from __future__ import annotations

PACKAGE = "dp_accounting"


def epsilon(q: float, noise: float, releases: int, delta: float) -> float:
    """Return the package's upper bound on epsilon (Doroshenko et al. 2022, "Connect the Dots: Tighter Discrete Approximations of
    Privacy Loss Distributions", 2207.04380)."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    event = SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(noise)), releases)
    return float(PLDAccountant().compose(event).get_epsilon(delta))
