"""Noise that is correlated over releases, so that it partly cancels in their sum: DP-FTRL's form, without sampling."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

LONGEST = 1_000_000  # releases that a sensitivity is worked out for


def weights(bands: int) -> list[float]:
    """Return d_0 ... d_{bands - 1}, the first coefficients of (1 - x)^(1/2): 1, -1/2, -1/8, -1/16, -5/128 ...

    Release t gets the noise sum_j d_j Z_{t-j} (Kalinin et al. 2025, "Back to Square Roots: An Optimal Bound on the Matrix
    Factorization Error for Multi-Epoch Differentially Private SGD", 2505.12128: the inverse of C is the banded inverse square root of
    the matrix of prefix sums, C the square root itself where there are as many bands as releases).
    """
    found = [1.0]
    for j in range(1, bands):
        found.append(found[-1] * (j - 1.5) / j)
    return found


@lru_cache(maxsize=64)
def sensitivity(bands: int, releases: int, apart: int) -> float:
    """Return how far one client moves C times its updates, in the clip's norm: of a client that takes part in releases at least
    `apart` from each other, of so many in all.

    The columns of C, c = 1 / (1 - x / 2 - x^2 / 8 - ...), are positive and fall, so the most that it can do is to take part in
    releases 1, 1 + apart, 1 + 2 apart ... (Kalinin and Lampert 2024, "Banded Square Root Matrix Factorization for Differentially Private
    Model Training", 2405.13763, theorem 2). Noise Z of deviation z norms is then one Gaussian mechanism with noise z / sensitivity,
    also where updates depend on earlier releases (Denisov et al. 2022, 2202.08312), under one client's updates or zeros in their place.
    ValueError beyond `LONGEST` releases.
    """
    from scipy.signal import lfilter

    if releases > LONGEST:
        raise ValueError(f"releases: {releases} found, allowed: at most {LONGEST}")
    takes_part = np.zeros(releases)
    takes_part[::apart] = 1.0
    return math.sqrt(float(np.square(lfilter([1.0], weights(bands), takes_part)).sum()))
