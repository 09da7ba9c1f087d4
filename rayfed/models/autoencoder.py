"""A convolutional autoencoder: an image in, the image out, through a few numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Autoencoder(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, latent) -> (B, C, H, W) in (0, 1): two convolutions of stride 2 and a linear layer, and back."""

    def __init__(self, channels: int, height: int, width: int, wide: int, latent: int):
        super().__init__()
        self.low = wide, (height + 3) // 4, (width + 3) // 4
        self.sizes = ((height + 1) // 2, (width + 1) // 2), (height, width)
        inner = self.low[0] * self.low[1] * self.low[2]
        self.down1 = nn.Conv2d(channels, wide, 3, 2, 1)
        self.down2 = nn.Conv2d(wide, wide, 3, 2, 1)
        self.code = nn.Linear(inner, latent)
        self.open = nn.Linear(latent, inner)
        self.up1 = nn.Conv2d(wide, wide, 3, 1, 1)
        self.up2 = nn.Conv2d(wide, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.down2(torch.relu(self.down1(x))))
        h = torch.relu(self.open(self.code(h.flatten(1)))).unflatten(1, self.low)
        h = torch.relu(self.up1(F.interpolate(h, self.sizes[0])))
        return torch.sigmoid(self.up2(F.interpolate(h, self.sizes[1])))


def build(classes: int, input_shape: tuple[int, ...], width: int, latent: int) -> nn.Module:
    channels, height, wide = input_shape
    return Autoencoder(channels, height, wide, width, latent)
