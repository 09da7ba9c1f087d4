"""Flag aggregator: the updates' mean, projected on a subspace that most of them agree on."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed.aggregate import Aggregator, AggregatorSettings, Evidence

EPS = 1e-7


class Settings(AggregatorSettings):
    """The subspace, and what is projected on it."""

    r: int | None = Field(None, ge=1, description="Dimensions of the subspace; default: (n + 1) / 2, rounded up.")
    pairs: float = Field(0.0, ge=0, description="Weight of the pairwise term (lambda); above 0 it takes n^2 pairs.")
    iterations: int = Field(5, ge=1, description="Iterations of reweighted least squares (published code: 1).")
    output: Literal["clipped", "paper", "code"] = Field(
        "clipped",
        description="What is projected: the mean of updates cut to their median norm (ours); their mean (paper); or the sum of unit "
        "updates over r (published code), which loses their length.",
    )


class Flag(Aggregator):
    """Almasi et al. 2024, "Flag Aggregator: Scalable Distributed Training under Failures and Augmented Losses using Convex
    Optimization" (ICLR 2024).

    x_i = u_i / ||u_i||, Y orthonormal with r columns, v_i = ||Y^T x_i||^2. Y approaches the minimum of sum_i sqrt(1 - v_i) +
    lambda / (n (n - 1)) sum_{i != j} sqrt(|1 - ||Y^T (x_i - x_j)||^2|): Y <- the first r left singular vectors of the columns
    w_i x_i (and w_ij (x_i - x_j)), w = (|1 - v| + 1e-7)^(-1/4); a new Y is kept only if it is better. Result: (1/n) Y Y^T sum_i u_i.

    All of it lies in the updates' span, so inner products are enough. Ours: Y begins as the unweighted singular vectors, which do
    not depend on the order of clients, in place of a random matrix; and the default `output`, which bounds what an attacker puts into
    the subspace.
    """

    Settings = Settings
    sums_to_one: ClassVar[bool] = False

    def weigh(self, seen: Evidence) -> np.ndarray:
        s, gram = self.settings, seen.gram
        n, norms = len(gram), np.sqrt(np.maximum(gram.diagonal(), 0.0))
        if not norms.any():
            return np.zeros(n)
        inverse = np.divide(1.0, norms, out=np.zeros(n), where=norms > 0)
        r = s.r or (n + 2) // 2
        projector = subspace(gram * np.outer(inverse, inverse), r, s.pairs, s.iterations)
        if s.output == "code":
            return projector @ np.ones(n) / r * inverse
        lengths = norms if s.output == "paper" else np.minimum(norms, np.median(norms))
        return projector @ lengths / n * inverse


def subspace(x: np.ndarray, r: int, pairs: float, iterations: int) -> np.ndarray:
    """Return P (n, n) such that Y Y^T X b = X P b for every b: the projection on the flag's subspace, in coordinates of unit vectors.

    x: (n, n) their inner products; r, pairs, iterations: see `Settings`.
    """
    n = len(x)
    values, vectors = np.linalg.eigh((x + x.T) / 2)
    there = values > max(values[-1], 0.0) * 1e-6  # inner products of float32 updates have that noise
    root, inverse = np.sqrt(values[there]), vectors[:, there] / np.sqrt(values[there])
    at = root[:, None] * vectors[:, there].T  # (q, n): the vectors in an orthonormal basis of their span
    unequal = ~np.eye(n, dtype=bool)

    def judge(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return 1 - v_i, and 1 - ||Y^T (x_i - x_j)||^2 of all pairs."""
        inside = y.T @ at
        own = (inside**2).sum(0)
        return 1 - own, 1 - (own[:, None] + own[None] - 2 * inside.T @ inside) if pairs else np.zeros((n, n))

    def objective(y: np.ndarray) -> float:
        one, two = judge(y)
        return float(
            np.sqrt(np.abs(one)).sum() + (_share(pairs, n) * np.sqrt(np.abs(two[unequal])).sum() if pairs else 0)
        )

    def step(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        """Return the first r singular vectors of the columns with these weights squared."""
        scatter = (at * one) @ at.T
        if pairs:
            laplace = np.diag(two.sum(1) + two.sum(0)) - two - two.T
            scatter = scatter + at @ laplace @ at.T
        return np.linalg.eigh((scatter + scatter.T) / 2)[1][:, ::-1][:, :r]

    best = step(np.ones(n), np.zeros((n, n)))
    for _ in range(iterations):
        one, two = judge(best)
        weights = _share(pairs, n) ** 2 * unequal / np.sqrt(np.abs(two) + EPS)
        new = step(1 / np.sqrt(np.abs(one) + EPS), weights)
        if objective(new) >= objective(best):
            break
        best = new
    return inverse @ best @ best.T @ at


def _share(pairs: float, n: int) -> float:
    return pairs / max(1, n * (n - 1))
