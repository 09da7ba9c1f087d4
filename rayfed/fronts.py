"""Multi-objective problems by formula, and measures of a set of solutions: hypervolume, range, sparsity.

A problem maps x in (0, 1)^n to m objectives that are all to be small; the box that a problem is posed on is part of the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = 1.1  # of the hypervolume, in units of the nadir


class Problem(NamedTuple):
    """name; n: numbers of a solution; nadir: (m,), by which objectives are divided; objectives: (..., n) in (0, 1) -> (..., m)."""

    name: str
    n: int
    nadir: tuple[float, ...]
    objectives: Callable[[Tensor], Tensor]


def _f(kind: int) -> Callable[[Tensor], Tensor]:
    """Return F1 to F6 of Lin et al. 2022 (2203.15386) as CoPSL's code has them, of six numbers; in F6 even terms have the fourth power."""

    def objectives(x: Tensor) -> Tensor:
        first, rest, n = x[..., :1], x[..., 1:], 6
        i = torch.arange(2, n + 1, dtype=x.dtype, device=x.device)
        even = i % 2 == 0
        turn = i * math.pi / n
        if kind == 1:
            y = rest - (2 * first - 1) ** 2
        elif kind == 2:
            y = rest - first ** (0.5 * (1 + 3 * (i - 2) / (n - 2)))
        elif kind == 3:
            y = rest - (torch.sin(4 * math.pi * first + turn) + 1) / 2
        elif kind in (4, 5):
            angle = 4 * math.pi * first + turn
            wave = torch.where(even, torch.sin(angle), torch.cos(angle / (3 if kind == 5 else 1)))
            y = 2 * rest - 1 - 0.8 * first * wave
        else:
            height = 0.3 * first**2 * torch.cos(12 * math.pi * first + 4 * turn) + 0.6 * first
            angle = 6 * math.pi * first + turn
            y = 2 * rest - 1 - height * torch.where(even, torch.sin(angle), torch.cos(angle))
        odd_terms = torch.where(even, 0.0, y**2).sum(-1) / 2
        even_terms = torch.where(even, y ** (4 if kind == 6 else 2), 0.0).sum(-1) / 3
        x1 = first[..., 0]
        share = x1 if kind == 3 else x1 / (1 + even_terms)
        return torch.stack([(1 + odd_terms) * x1, (1 + even_terms) * (1 - share.sqrt())], -1)

    return objectives


def _zdt(kind: int) -> Callable[[Tensor], Tensor]:
    """Return ZDT1, 2, 3 or 6 (Zitzler, Deb and Thiele 2000)."""

    def objectives(x: Tensor) -> Tensor:
        x1, mean = x[..., 0], x[..., 1:].mean(-1)
        f1, g = x1, 1 + 9 * mean
        if kind == 6:
            f1 = 1 - torch.exp(-4 * x1) * torch.sin(6 * math.pi * x1) ** 6
            g = 1 + 9 * mean**0.25
        share = f1 / g
        shape = 1 - (share.sqrt() if kind in (1, 3) else share**2)
        if kind == 3:
            shape = shape - share * torch.sin(10 * math.pi * f1)
        return torch.stack([f1, g * shape], -1)

    return objectives


def _boxed(low: tuple[float, ...], high: tuple[float, ...], of: Any) -> Callable[[Tensor], Tensor]:
    """Return a problem of numbers in a box as one of numbers in (0, 1)."""

    def objectives(x: Tensor) -> Tensor:
        return torch.stack(of(*(a + (b - a) * x[..., i] for i, (a, b) in enumerate(zip(low, high, strict=True)))), -1)

    return objectives


def _violation(*constraints: Tensor) -> Tensor:
    """Return by how much constraints g >= 0 are missed together."""
    return sum(torch.relu(-g) for g in constraints)  # type: ignore[return-value]


def _re31(x1: Tensor, x2: Tensor, x3: Tensor) -> tuple[Tensor, ...]:
    f1 = x1 * (16 + x3**2).sqrt() + x2 * (1 + x3**2).sqrt()
    f2 = 20 * (16 + x3**2).sqrt() / (x1 * x3)
    return f1, f2, _violation(0.1 - f1, 1e5 - f2, 1e5 - 80 * (1 + x3**2).sqrt() / (x3 * x2))


def _re32(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> tuple[Tensor, ...]:
    load, length, young, shear = 6000.0, 14.0, 3e7, 1.2e7
    f1 = 1.10471 * x1**2 * x2 + 0.04811 * x3 * x4 * (14 + x2)
    f2 = 4 * load * length**3 / (young * x4 * x3**3)
    half = ((x1 + x3) / 2) ** 2
    r = (x2**2 / 4 + half).sqrt()
    j = 2 * math.sqrt(2) * x1 * x2 * (x2**2 / 12 + half)
    t1, t2 = load / (math.sqrt(2) * x1 * x2), load * (length + x2 / 2) * r / j
    tau = (t1**2 + t1 * t2 * x2 / r + t2**2).sqrt()
    sigma = 6 * load * length / (x4 * x3**2)
    buckling = 4.013 * young * (x3**2 * x4**6 / 36).sqrt() / length**2
    buckling = buckling * (1 - x3 / (2 * length) * math.sqrt(young / (4 * shear)))
    return f1, f2, _violation(13600 - tau, 30000 - sigma, x4 - x1, buckling - load)


def _re33(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor) -> tuple[Tensor, ...]:
    d2, d3 = x2**2 - x1**2, x2**3 - x1**3
    missed = _violation(
        x2 - x1 - 20, 0.4 - x3 / (3.14 * d2), 1 - 2.22e-3 * x3 * d3 / d2**2, 2.66e-2 * x3 * x4 * d3 / d2 - 900
    )
    return 4.9e-5 * d2 * (x4 - 1), 9.82e6 * d2 / (x3 * x4 * d3), missed


def _re34(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor) -> tuple[Tensor, ...]:
    f1 = 1640.2823 + 2.3573285 * x1 + 2.3220035 * x2 + 4.5688768 * x3 + 7.7213633 * x4 + 4.4559504 * x5
    f2 = 6.5856 + 1.15 * x1 - 1.0427 * x2 + 0.9738 * x3 + 0.8364 * x4 - 0.3695 * x1 * x4 + 0.0861 * x1 * x5
    f2 = f2 + 0.3628 * x2 * x4 - 0.1106 * x1**2 - 0.3437 * x3**2 + 0.1764 * x4**2
    f3 = -0.0551 + 0.0181 * x1 + 0.1024 * x2 + 0.0421 * x3 - 0.0073 * x1 * x2 + 0.024 * x2 * x3 - 0.0118 * x2 * x4
    f3 = f3 - 0.0204 * x3 * x4 - 0.008 * x3 * x5 - 0.0241 * x2**2 + 0.0109 * x4**2
    return f1, f2, f3


def _re37(a: Tensor, h: Tensor, o: Tensor, p: Tensor) -> tuple[Tensor, ...]:
    f1 = 0.692 + 0.477 * a - 0.687 * h - 0.080 * o - 0.0650 * p - 0.167 * a**2 - 0.0129 * h * a + 0.0796 * h**2
    f1 = f1 - 0.0634 * o * a - 0.0257 * o * h + 0.0877 * o**2 - 0.0521 * p * a + 0.00156 * p * h + 0.00198 * p * o
    f1 = f1 + 0.0184 * p**2
    f2 = 0.153 - 0.322 * a + 0.396 * h + 0.424 * o + 0.0226 * p + 0.175 * a**2 + 0.0185 * h * a - 0.0701 * h**2
    f2 = f2 - 0.251 * o * a + 0.179 * o * h + 0.0150 * o**2 + 0.0134 * p * a + 0.0296 * p * h + 0.0752 * p * o
    f2 = f2 + 0.0192 * p**2
    f3 = 0.370 - 0.205 * a + 0.0307 * h + 0.108 * o + 1.019 * p - 0.135 * a**2 + 0.0141 * h * a + 0.0998 * h**2
    f3 = f3 + 0.208 * o * a - 0.0301 * o * h - 0.226 * o**2 + 0.353 * p * a - 0.0497 * p * o - 0.423 * p**2
    f3 = f3 + 0.202 * h * a**2 - 0.281 * o * a**2 - 0.342 * h**2 * a - 0.245 * h**2 * o + 0.281 * o**2 * h
    return f1, f2, f3 - 0.184 * p**2 * a - 0.281 * h * a * o


def _list() -> dict[str, Problem]:
    box: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
        "RE31": ((1e-5, 1e-5, 1), (100, 100, 3)),
        "RE32": ((0.125, 0.1, 0.1, 0.125), (5, 10, 10, 5)),
        "RE33": ((55, 75, 1000, 11), (80, 110, 3000, 20)),
        "RE34": ((1,) * 5, (3,) * 5),
        "RE37": ((0,) * 4, (1,) * 4),
    }
    nadir = {
        "RE31": (500.0, 9e6, 2e7),
        "RE32": (35.3096156, 17561.6, 425062977.0),
        "RE33": (5.3067, 3.12833430979, 25.0),
        "RE34": (1695.72022, 11.81993945, 0.2903999384),
        "RE37": (0.98949120096, 0.956587924661, 0.987530948586),
    }
    of = {"RE31": _re31, "RE32": _re32, "RE33": _re33, "RE34": _re34, "RE37": _re37}
    made = [
        *(Problem(f"F{k}", 6, (1.0, 1.0), _f(k)) for k in range(1, 7)),
        *(Problem(n, len(low), nadir[n], _boxed(low, high, of[n])) for n, (low, high) in box.items()),
        *(Problem(f"ZDT{k}", 10, (1.0, 1.0), _zdt(k)) for k in (1, 2, 3, 6)),
    ]
    return {p.name: p for p in made}


PROBLEMS = _list()
SUITES = {  # of problems with as many objectives each; their formulas: CoPSL's code, the RE set Tanabe and Ishibuchi 2020 (2009.12867)
    "f": ("F1", "F2", "F3", "F4", "F5", "F6"),
    "re": ("RE31", "RE32", "RE33", "RE34", "RE37"),
    "zdt": ("ZDT1", "ZDT2", "ZDT3", "ZDT6"),
}


def preferences(m: int) -> np.ndarray:
    """Return the preferences that fronts are judged at: of two objectives 100 even ones of length 1, (100, 2); of three the simplex in 13
    divisions (Das and Dennis 1998), (105, 3). float64."""
    if m == 2:
        t = np.linspace(0, 1, 100)
        p = np.stack([t, 1 - t], 1)
        return p / np.linalg.norm(p, axis=1, keepdims=True)
    steps = 13
    return np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps


# -- measures of a set of points, all objectives to be small ---------------------------------------------------------------


def nondominated(points: np.ndarray) -> np.ndarray:
    """Return the points (k, m) that no other one is at least as good as in all objectives and better in one; equal ones once."""
    points = np.unique(points, axis=0)
    less = (points[:, None] <= points[None]).all(-1) & (points[:, None] < points[None]).any(-1)
    return points[~less.any(0)]


def hypervolume(points: np.ndarray, reference: float = REFERENCE) -> float:
    """Return the volume that is dominated by points (n, m), m of 1 to 3, up to `reference` in every objective; those beyond add none."""
    points = np.asarray(points, np.float64)
    points = nondominated(points[(points < reference).all(1)])
    if points.shape[1] == 1:
        return float(reference - points.min()) if len(points) else 0.0
    if points.shape[1] == 2:  # sorted by the first: the second falls
        ends = np.append(points[1:, 0], reference)
        return float(((ends - points[:, 0]) * (reference - points[:, 1])).sum())
    order = np.argsort(points[:, 2])
    ends = np.append(points[order[1:], 2], reference)
    slices = [
        (end - points[i, 2]) * hypervolume(points[order[: k + 1], :2], reference)
        for k, (i, end) in enumerate(zip(order, ends, strict=True))
        if end > points[i, 2]
    ]
    return float(math.fsum(slices))


def extent(points: np.ndarray) -> float:
    """Return the range: of the non-dominated points the mean over objectives of largest less smallest."""
    points = nondominated(points)
    return float((points.max(0) - points.min(0)).mean())


def sparsity(points: np.ndarray) -> float:
    """Return the sum over objectives of the squared gaps between neighbouring values, over the number of gaps; NaN of a single point."""
    points = nondominated(points)
    if len(points) < 2:
        return math.nan
    return float((np.diff(np.sort(points, 0), axis=0) ** 2).sum() / (len(points) - 1))
