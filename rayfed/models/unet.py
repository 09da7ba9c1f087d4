"""A small U-Net (Ronneberger et al. 2015, 1505.04597) with GroupNorm: an image in, logits of each pixel out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UNet(nn.Module):
    """(B, C, H, W) -> (B, classes, H, W): `depth` halvings, each with twice as many channels, and back beside what was there before."""

    def __init__(self, classes: int, channels: int, width: int, depth: int):
        super().__init__()
        sizes = [width << i for i in range(depth + 1)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([channels, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            seen.append(x)
        for block, beside in zip(self.up, seen[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], 1))
        return self.head(x)


def _block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(1, b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU())


def build(classes: int, input_shape: tuple[int, ...], width: int, depth: int) -> nn.Module:
    return UNet(classes, input_shape[0], width, depth)
