"""Change brightness, contrast and saturation of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import keys
from rayfed.augment import Augmentation, AugmentSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # of red, green and blue


class Colour(Augmentation):
    """Scale an image's values, their distance from its mean grey, and the distance of its colours from grey, in this order.

    Each factor is uniform in [1 - s, 1 + s] (torchvision's ColorJitter, which also draws the order and cuts values to [0, 1]; here
    they are not cut, since inputs may have been normalised).
    """

    class Settings(AugmentSettings):
        brightness: float = Field(0.2, ge=0, le=1, description="s of the values.")
        contrast: float = Field(0.2, ge=0, le=1, description="s of the distance from the image's mean grey.")
        saturation: float = Field(
            0.0, ge=0, le=1, description="s of the distance from grey; for images of three channels."
        )

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        s = self.settings
        u = 2 * keys.uniform(key, (3,), torch.float32).to(x.dtype) - 1
        x = x * (1 + s.brightness * u[0])
        if s.contrast:
            mean = _grey(x).mean()
            x = mean + (1 + s.contrast * u[1]) * (x - mean)
        if s.saturation:
            grey = _grey(x)
            x = grey + (1 + s.saturation * u[2]) * (x - grey)
        return x


def _grey(x: Tensor) -> Tensor:
    """Return (1, H, W)."""
    if x.shape[0] != 3:
        return x.mean(0, keepdim=True)
    return (x * torch.tensor(GREY, dtype=x.dtype, device=x.device)[:, None, None]).sum(0, keepdim=True)
