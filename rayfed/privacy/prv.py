"""Numerical composition of privacy random variables, by the package prv-accountant."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PACKAGE = "prv_accountant"
ERROR = 0.01  # of epsilon, at most, that the numerical bound may be above what is spent


def epsilon(q: float, noise: float, releases: int, delta: float) -> float:
    """Return the package's upper bound on epsilon (Gopi et al. 2021, "Numerical Composition of Differential Privacy", 2106.02848)."""
    accountant = _accountant(q, noise, _power_of_two(releases), delta)
    _, _, upper = accountant.compute_epsilon(delta=delta, num_self_compositions=[releases])
    return float(upper)


def _power_of_two(releases: int) -> int:
    """Return the next power of two: what one accountant is made for, and serves so many releases and fewer."""
    return 1 << (releases - 1).bit_length()


@lru_cache(maxsize=32)
def _accountant(q: float, noise: float, most: int, delta: float) -> Any:
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    mechanism = PoissonSubsampledGaussianMechanism(noise_multiplier=noise, sampling_probability=q)
    return PRVAccountant(prvs=[mechanism], max_self_compositions=[most], eps_error=ERROR, delta_error=delta / 1000)
