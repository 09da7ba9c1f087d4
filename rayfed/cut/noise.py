"""Gaussian noise on what a client sends at a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import keys
from rayfed.cut import At, CutTransform, TransformSettings, crossing

if TYPE_CHECKING:
    from torch import Tensor


class Noise(CutTransform):
    """Add N(0, std^2) to every number that a client sends: activations on their way to the server, and gradients where activations come
    from it. What the server sends is left as it is. No epsilon is claimed for it: nothing bounds what it is added to.
    """

    class Settings(TransformSettings):
        std: float = Field(0.1, gt=0, description="Standard deviation of the noise.")

    def __call__(self, h: Tensor, at: At) -> Tensor:
        there, back = (self.noisy, _same) if at.sends else (_same, self.noisy)
        return crossing(h, there, back, at.key)

    def noisy(self, v: Tensor, key: Tensor) -> Tensor:
        """Return v with noise that follows from a key."""
        return v + self.settings.std * keys.normal(key, v.shape, v.dtype)


def _same(v: Tensor, key: Tensor) -> Tensor:
    return v.clone()
