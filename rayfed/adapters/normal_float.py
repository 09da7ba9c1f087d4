"""Frozen weights at few bits: NormalFloat for four, even levels for eight."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from rayfed.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 64  # entries that share a scale


@cache
def levels(bits: int) -> Tensor:
    """Return the 2^bits levels of NormalFloat, sorted float64 from -1 to 1 with 0 among them: quantiles of N(0, 1) over the largest
    (Dettmers et al. 2023, "QLoRA", 2305.14314)."""
    n = 2**bits
    offset = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    high = torch.special.ndtri(torch.linspace(offset, 0.5, n // 2 + 1, dtype=torch.float64)[:-1])
    low = -torch.special.ndtri(torch.linspace(offset, 0.5, n // 2, dtype=torch.float64)[:-1])
    found: Tensor = torch.cat([low, torch.zeros(1, dtype=torch.float64), high]).sort().values
    return found / found.abs().max()


def rounded(w: Tensor, bits: int, block: int = BLOCK) -> Tensor:
    """Return a tensor as `bits` of each entry and a scale of each block of entries give it back: 4 NormalFloat, 8 even, 16 itself."""
    if bits == 16:
        return w
    blocks = F.pad(w.reshape(-1), (0, -w.numel() % block)).reshape(-1, block)
    c = blocks.abs().amax(-1, keepdim=True)
    share = blocks / torch.where(c > 0, c, 1.0)
    found = nearest(share, levels(bits).to(w.device, w.dtype)) if bits < 8 else (share * 127).round() / 127
    return (found * c).reshape(-1)[: w.numel()].reshape(w.shape)


def nearest(x: Tensor, among: Tensor) -> Tensor:
    """Return the nearest of the levels `among` (n,) to each entry."""
    return among[(x[..., None] - among).abs().argmin(-1)]
