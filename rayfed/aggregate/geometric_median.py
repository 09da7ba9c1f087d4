"""Geometric median of the updates (RFA)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from rayfed.aggregate import Aggregator, AggregatorSettings, Evidence


class Settings(AggregatorSettings):
    """How well it is approached."""

    iterations: int = Field(10, ge=0, description="Steps of the smoothed Weiszfeld algorithm; 0 is the mean.")
    nu: float = Field(1e-6, gt=0, description="Least distance that a step divides by, in the parameters' units.")


class GeometricMedian(Aggregator):
    """Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for Federated Learning" (RFA; 1912.13445), algorithm 2.

    The point of least weighted sum of distances to the updates, weights w_i those of the method's mean (n_i / n in the paper):
    v <- sum_i b_i u_i / sum_i b_i, b_i = w_i / max(nu, ||v - u_i||), from the weighted mean on. v is a combination of the updates,
    so its distances follow from their inner products. It withstands attackers of less than half of the weight.
    """

    Settings = Settings
    weighted: ClassVar[bool] = True

    def weigh(self, seen: Evidence) -> np.ndarray:
        gram, c = seen.gram, seen.weights
        for _ in range(self.settings.iterations):
            product = gram @ c
            far = np.sqrt(np.maximum(c @ product - 2 * product + gram.diagonal(), 0.0))
            b = seen.weights / np.maximum(far, self.settings.nu)
            c = b / b.sum()
        return c
