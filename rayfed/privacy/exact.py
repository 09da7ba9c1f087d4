"""The closed form of Gaussian noise without sampling: releases compose to one Gaussian mechanism."""

from __future__ import annotations

import math

PACKAGE = None


def epsilon(q: float, noise: float, releases: int, delta: float) -> float:
    """Return the least epsilon with delta(epsilon) <= `delta` (Balle and Wang 2018, "Improving the Gaussian Mechanism for
    Differential Privacy", 1805.06530, theorem 8; Dong et al. 2022, "Gaussian Differential Privacy", corollaries 1 and 2):

        delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu),  mu = sqrt(releases) / noise.

    q must be 1; ValueError otherwise.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    if q != 1:
        raise ValueError(f"q: {q:g} found, the closed form is of releases with every client: 1")
    mu = math.sqrt(releases) / noise

    def over(eps: float) -> float:
        return math.exp(log_ndtr(mu / 2 - eps / mu)) - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)) - delta

    if over(0.0) <= 0:
        return 0.0
    high = 1.0
    while over(high) > 0:
        high *= 2
    return float(brentq(over, 0.0, high, xtol=1e-12, rtol=1e-12))
