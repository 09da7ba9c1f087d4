"""Mirror images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import keys
from rayfed.augment import Augmentation, AugmentSettings
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Flip(Augmentation):
    """Mirror an image with a chance, left to right or top to bottom."""

    class Settings(AugmentSettings):
        chance: float = Field(0.5, ge=0, le=1, description="Chance that an image is mirrored.")
        axis: Literal["horizontal", "vertical"] = Field("horizontal", description="Left to right, or top to bottom.")

    moves: ClassVar[bool] = True

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        mirrored = x.flip(-1 if self.settings.axis == "horizontal" else -2)
        return torch.where(keys.uniform(key, (), torch.float32) < self.settings.chance, mirrored, x)
