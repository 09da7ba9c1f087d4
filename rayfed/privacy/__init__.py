"""Accountants: how much privacy the releases of a run have spent. One file per kind; the folder is the registry.

Each is a module with `epsilon(q, noise, releases, delta)` and the name of the package that it needs, `PACKAGE`. What is spent is
what the mechanism spends: sums of vectors of norm at most C, each client in a sum with probability `q` by itself (Poisson
sampling), Gaussian noise of standard deviation `noise` C on each sum, under addition or removal of one client.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache

INSTALLED = ("prv", "pld")  # of packages, in the order in which `auto` takes them
STEPS = 40  # of a search for the noise that a budget needs


def choose(kind: str, q: float) -> str:
    """Return the accountant that stands behind a setting: `auto` is the closed form where every client takes part in every release
    (q = 1), else the first package that is installed, else "prv"."""
    if kind != "auto":
        return kind
    if q >= 1:
        return "exact"
    return next((k for k in INSTALLED if not missing(k)), INSTALLED[0])


def missing(kind: str) -> str | None:
    """Return the package that an accountant needs where it is not installed; None where it can be used."""
    package = importlib.import_module(f"{__name__}.{kind}").PACKAGE
    return package if package and importlib.util.find_spec(package) is None else None


@lru_cache(maxsize=4096)
def epsilon(kind: str, q: float, noise: float, releases: int, delta: float) -> float:
    """Return the epsilon at `delta` that so many releases have spent, by an accountant that `choose` gave; 0 of none."""
    if not releases:
        return 0.0
    return float(importlib.import_module(f"{__name__}.{kind}").epsilon(q, noise, releases, delta))


def noise_for(kind: str, q: float, releases: int, delta: float, budget: float) -> float:
    """Return the least noise multiplier, rounded up to three digits, with which so many releases stay within a budget."""
    low, high = 0.0, 1.0
    while epsilon(kind, q, high, releases, delta) > budget:
        low, high = high, 2 * high
    for _ in range(STEPS):
        if high - low <= 1e-3 * high:
            break
        middle = (low + high) / 2
        if epsilon(kind, q, middle, releases, delta) > budget:
            low = middle
        else:
            high = middle
    digits = float(f"{high:.3g}")
    return digits if digits >= high else float(f"{high * 1.005:.3g}")
