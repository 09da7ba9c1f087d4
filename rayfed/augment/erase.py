"""Erase a rectangle of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from rayfed import keys
from rayfed.augment import Augmentation, AugmentSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Erase(Augmentation):
    """Set a rectangle of an image to one value, with a chance (Zhong et al. 2020, "Random Erasing Data Augmentation", 1708.04896).

    Its area is uniform in `area` of the image's, its height over its width log-uniform in `ratio`. Where it does not fit, its sides
    are cut to the image's, where the paper draws again: the number of draws must not depend on values here.
    """

    class Settings(AugmentSettings):
        chance: float = Field(0.5, ge=0, le=1, description="Chance that an image loses a rectangle.")
        area: tuple[float, float] = Field((0.02, 0.33), description="Least and greatest share of the image's area.")
        ratio: tuple[float, float] = Field((0.3, 3.3), description="Least and greatest height over width.")
        value: float = Field(0.0, description="What the rectangle holds afterwards.")

        @field_validator("area", "ratio")
        @classmethod
        def _ordered(cls, v: Any) -> Any:
            if not 0 < v[0] <= v[1]:
                raise ValueError(f"{list(v)} found, allowed: [least, greatest], both above 0")
            return v

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        s, (h, w) = self.settings, x.shape[-2:]
        u = keys.uniform(key, (5,), torch.float32)
        area = (s.area[0] + (s.area[1] - s.area[0]) * u[0]) * (h * w)
        low, high = map(math.log, s.ratio)
        ratio = torch.exp(low + (high - low) * u[1])
        height = torch.sqrt(area * ratio).round().clamp(1, h)
        width = torch.sqrt(area / ratio).round().clamp(1, w)
        top, left = ((h - height + 1) * u[2]).floor(), ((w - width + 1) * u[3]).floor()
        rows, columns = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)[None, :]
        inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
        return torch.where(inside & (u[4] < s.chance), torch.full_like(x, s.value), x)
