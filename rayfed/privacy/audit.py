"""What an audit has shown: an epsilon that no mechanism of less would let so many guesses be right, but by luck."""

from __future__ import annotations

import math

HIGHEST = 64.0  # epsilon that is looked for


def lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """Return an epsilon that the run has spent at least, with that confidence (Steinke et al. 2023, "Privacy Auditing with One (1)
    Training Run", 2305.08846, theorem 5.2 and appendix D).

    canaries: m, each in or out by a fair coin; guesses: r of them that were guessed, chosen without the coins; right: v, how many were.
    If the run is (epsilon, delta)-private, the chance of v right guesses or more is at most
        P(W >= v) + 2 m delta max_i (P(v - i <= W < v) / i),  W binomial of r and e^epsilon / (1 + e^epsilon).
    ValueError where the numbers do not fit together.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"right: {right} of {guesses} guesses of {canaries} canaries found")
    if chance(canaries, guesses, right, delta, 0.0) > 1 - confidence:
        return 0.0
    low, high = 0.0, HIGHEST
    for _ in range(60):
        middle = (low + high) / 2
        if chance(canaries, guesses, right, delta, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def chance(canaries: int, guesses: int, right: int, delta: float, epsilon: float) -> float:
    """Return the largest chance of so many right guesses or more under an (epsilon, delta)-private run; see `lower_bound`."""
    from scipy.stats import binom

    of_one = 1 / (1 + math.exp(-epsilon))
    below, most = 0.0, 0.0
    for i in range(1, right + 1):
        below += float(binom.pmf(right - i, guesses, of_one))
        most = max(most, below / i)
    return min(1.0, float(binom.sf(right - 1, guesses, of_one)) + 2 * canaries * delta * most)
