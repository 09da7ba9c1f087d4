"""Operations on one image whose magnitude in [0, 1] a policy chooses: (image (C, H, W), magnitude 0-d, key 0-d) -> image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from rayfed import keys
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Operation = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]

FURTHEST, STEEPEST = 0.3, math.radians(30)  # of translate, in sides, and of rotate


def identity(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Leave the image."""
    return x


def translate(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Move the image by m times 0.3 of its width to the right; what comes in is 0."""
    rows, columns = _grid(x)
    return _sampled(x, rows, columns - m * FURTHEST * x.shape[-1])


def rotate(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Turn the image by m times 30 degrees about its middle; what comes in is 0."""
    rows, columns = _grid(x)
    top, left = (x.shape[-2] - 1) / 2, (x.shape[-1] - 1) / 2
    cos, sin = torch.cos(m * STEEPEST), torch.sin(m * STEEPEST)
    r, c = rows - top, columns - left
    return _sampled(x, top + cos * r - sin * c, left + sin * r + cos * c)


def contrast(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Scale the distance of values from their mean by 1 + m."""
    return x.mean() + (1 + m) * (x - x.mean())


def brightness(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Scale values by 1 - 0.9 m."""
    return x * (1 - 0.9 * m)


def cutout(x: Tensor, m: Tensor, key: Tensor) -> Tensor:
    """Set a square of m times half the image's side to 0, its middle anywhere."""
    rows, columns = _grid(x)
    u = keys.uniform(key, (2,), torch.float32).to(x.dtype)
    half = m * min(x.shape[-2:]) / 4
    inside = ((rows - u[0] * (x.shape[-2] - 1)).abs() < half) & ((columns - u[1] * (x.shape[-1] - 1)).abs() < half)
    return torch.where(inside, torch.zeros_like(x), x)


OPERATIONS: dict[str, Operation] = {f.__name__: f for f in (identity, translate, rotate, contrast, brightness, cutout)}


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's row and column, (H, W)."""
    h, w = x.shape[-2:]
    rows = torch.arange(h, dtype=x.dtype, device=x.device)[:, None].expand(h, w)
    return rows, torch.arange(w, dtype=x.dtype, device=x.device)[None].expand(h, w)


def _sampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return x (C, H, W) read at places (H, W), linear between the nearest pixels along both axes, 0 outside."""
    c, h, w = x.shape
    flat, top, left = x.reshape(c, h * w), torch.floor(rows), torch.floor(columns)
    total = torch.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            r, k = top + down, left + right
            share = (1 - (rows - r).abs()) * (1 - (columns - k).abs())
            inside = (r >= 0) & (r < h) & (k >= 0) & (k < w)
            at = (r.clamp(0, h - 1) * w + k.clamp(0, w - 1)).long().reshape(1, -1).expand(c, h * w)
            total = total + flat.gather(1, at).reshape(c, h, w) * share * inside.to(x.dtype)
    return total
