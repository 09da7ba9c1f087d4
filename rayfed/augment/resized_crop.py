"""Show parts of images at the images' size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from rayfed import keys
from rayfed.augment import Augmentation, AugmentSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class ResizedCrop(Augmentation):
    """Cut a rectangle out of an image and show it at the image's size (torchvision's RandomResizedCrop; Szegedy et al. 2015,
    "Going Deeper with Convolutions", 1409.4842).

    Its area is uniform in `area` of the image's, its height over its width log-uniform in `ratio`; sides that do not fit are cut to the
    image's, where torchvision draws again. Values between pixels are linear between the nearest two, along each axis.
    """

    class Settings(AugmentSettings):
        area: tuple[float, float] = Field((0.4, 1.0), description="Least and greatest share of the image's area.")
        ratio: tuple[float, float] = Field((0.75, 1.333), description="Least and greatest height over width.")

        @field_validator("area", "ratio")
        @classmethod
        def _ordered(cls, v: Any) -> Any:
            if not 0 < v[0] <= v[1]:
                raise ValueError(f"{list(v)} found, allowed: [least, greatest], both above 0")
            return v

        @field_validator("area")
        @classmethod
        def _a_share(cls, v: Any) -> Any:
            if v[1] > 1:
                raise ValueError(f"{list(v)} found, allowed: at most 1, the whole image")
            return v

    moves: ClassVar[bool] = True

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        s, (h, w) = self.settings, x.shape[-2:]
        u = keys.uniform(key, (4,), torch.float32).to(x.dtype)
        area = (s.area[0] + (s.area[1] - s.area[0]) * u[0]) * (h * w)
        low, high = map(math.log, s.ratio)
        ratio = torch.exp(low + (high - low) * u[1])
        rows = _taken(torch.sqrt(area * ratio).clamp(1, h), u[2], h)
        columns = _taken(torch.sqrt(area / ratio).clamp(1, w), u[3], w)
        return rows @ x @ columns.T


def _taken(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Return (size, size): how much of each of an axis's pixels each shown one has, where `length` pixels from (size - length) place on are
    shown."""
    at = torch.arange(size, dtype=length.dtype, device=length.device)
    middle = (size - length) * place + (at + 0.5) * length / size - 0.5
    return (1 - (middle.clamp(0, size - 1)[:, None] - at[None]).abs()).clamp(min=0)
