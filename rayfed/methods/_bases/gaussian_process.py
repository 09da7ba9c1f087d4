"""A Gaussian process over values that were asked for, as pure functions of tensors of fixed size: the gradient of its mean, and where
that is least certain. All in float64.

points (M, D), values (M,), known (M,) bool: which of them are there; z (D,).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 1e-6


def scaled(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return (values in [0, 1], 0 where none is known, and max - min); all are 0 where only one value is there."""
    low = torch.where(known, values, torch.inf).min()
    span = torch.where(known, values, -torch.inf).max() - low
    span = torch.where(torch.isfinite(span), span, 0.0)
    return torch.where(known, (values - low) / torch.where(span > 0, span, 1.0), 0.0), span


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _gram(k: Tensor, known: Tensor) -> Tensor:
    """Return a kernel's matrix with noise, and the unit matrix's rows where nothing is known."""
    pairs = known[:, None] & known[None]
    return torch.where(pairs, k, 0.0) + torch.diag(torch.where(known, NOISE, 1.0))


def matern(r: Tensor, scale: float) -> Tensor:
    """Return Matern 5/2 of distances."""
    s = math.sqrt(5) * r / scale
    return (1 + s + s**2 / 3) * torch.exp(-s)


def mean_gradient(points: Tensor, values: Tensor, known: Tensor, z: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Return the gradient (D,) at z of the posterior mean under Matern 5/2, in the values' unit; of the length scales that of most
    likelihood. Zero where all values are one."""
    y, span = scaled(values, known)
    r = _distances(points, points)
    best: tuple[Tensor, Tensor] | None = None
    for scale in scales:
        lower = torch.linalg.cholesky(_gram(matern(r, scale), known))
        weights = torch.cholesky_solve(y[:, None], lower)[:, 0]
        fit = -0.5 * (y @ weights) - torch.log(lower.diagonal()).sum()
        gradient = _slopes(points, z, scale).T @ weights
        best = (
            (fit, gradient)
            if best is None
            else (torch.maximum(fit, best[0]), torch.where(fit > best[0], gradient, best[1]))
        )
    assert best is not None
    return span * best[1]


def _slopes(points: Tensor, z: Tensor, scale: float) -> Tensor:
    """Return d matern(|z - z_m|) / dz, (M, D)."""
    gap, a = z - points, math.sqrt(5) / scale
    s = a * gap.square().sum(-1).sqrt()
    return -(a**2 / 3) * ((1 + s) * torch.exp(-s))[:, None] * gap


def uncertainty(points: Tensor, known: Tensor, candidates: Tensor, scale: float) -> Tensor:
    """Return the variance of the gradient, summed over its entries, at candidates (C, D), (C,): under the kernel exp(-|a - b|^2 / (2
    scale^2)) given the known points. D / scale^2 less, over entries, the covariances' quadratic form, which needs inner products
    alone."""

    def kernel(r: Tensor) -> Tensor:
        return torch.exp(-(r**2) / (2 * scale**2))

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(_gram(kernel(_distances(points, points)), known)))
    centre = candidates.mean(0)  # small numbers, of which differences are exact enough
    k = torch.where(known, kernel(_distances(candidates, points)), 0.0)
    p, c = torch.where(known[:, None], points - centre, 0.0), candidates - centre
    weighed = k @ inverse
    explained = c.square().sum(-1) * (weighed * k).sum(-1) - 2 * (weighed * k * (c @ p.T)).sum(-1)
    explained = explained + ((k @ (inverse * (p @ p.T))) * k).sum(-1)
    return points.shape[1] / scale**2 - explained / scale**4
