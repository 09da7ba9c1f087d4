"""Frozen linear layers in four bits: NF4 (Dettmers et al. 2023, QLoRA, 2305.14314), in plain torch.

Each block of 64 weights is its largest magnitude, in float32, and for each weight the nearest of 16 levels between -1 and 1, the
quantiles of a normal distribution. That is 0.56 bytes for each weight. A layer makes its weights again in every forward pass, for all
clients of a cohort at once, and they have no gradient. The scales are not quantised again (no double quantisation).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # weights that share a scale


def quantised(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return (two levels in each byte, (ceil(n / 64) * 32,) uint8; scales (ceil(n / 64),) float32) of n weights of any shape."""
    flat = F.pad(w.detach().float().reshape(-1), (0, -w.numel() % BLOCK)).reshape(-1, BLOCK)
    scale = flat.abs().amax(1)
    unit = flat / torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]
    levels = torch.tensor(LEVELS, device=w.device)
    borders = (levels[1:] + levels[:-1]) / 2
    at = torch.bucketize(unit.reshape(-1), borders).to(torch.uint8)
    return at[0::2] * 16 + at[1::2], scale


def restored(codes: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the weights that are meant, of a shape."""
    at = torch.stack([codes >> 4, codes & 15], 1).reshape(-1, BLOCK).long()
    levels = torch.tensor(LEVELS, device=codes.device)
    flat = (levels[at] * scale[:, None].float()).reshape(-1)
    n = 1
    for s in shape:
        n *= s
    return flat[:n].reshape(shape).to(dtype)


class NF4Linear(nn.Linear):
    """A linear layer whose frozen weight is in NF4; `install` makes one of a layer that is there, with its hooks and submodules."""

    codes: Tensor
    scales: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        kind = self.bias.dtype if self.bias is not None else torch.float32
        return restored(self.codes, self.scales, (self.out_features, self.in_features), kind)

    def forward(self, x: Tensor) -> Tensor:
        w = restored(self.codes, self.scales, (self.out_features, self.in_features), x.dtype)
        return F.linear(x, w, None if self.bias is None else self.bias.to(x.dtype))


def install(network: nn.Module, spared: Any) -> int:
    """Put the frozen weights of linear layers into NF4, in place, and return how many; spared(name): whether a layer stays as it is."""
    found = 0
    for name, m in network.named_modules():
        if type(m) is nn.Linear and not m.weight.requires_grad and not spared(f"{name}.weight"):
            codes, scales = quantised(m.weight)
            del m._parameters["weight"]
            m.__class__ = NF4Linear
            m.register_buffer("codes", codes, persistent=False)
            m.register_buffer("scales", scales, persistent=False)
            found += 1
    return found
