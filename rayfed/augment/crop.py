"""Shift images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import keys
from rayfed.augment import Augmentation, AugmentSettings
from rayfed.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


class Crop(Augmentation):
    """Pad an image on all sides and cut its own size out anywhere (He et al. 2016, "Deep Residual Learning for Image Recognition",
    1512.03385, section 4.2: 4 pixels around 32 x 32)."""

    class Settings(AugmentSettings):
        padding: int = Field(4, ge=1, description="Pixels added on each side; also the largest shift.")
        fill: Literal["zero", "reflect", "edge"] = Field(
            "zero",
            description="What they hold: 0, the image mirrored at its edge (padding below its size), or the edge itself.",
        )

    moves: ClassVar[bool] = True

    def image(self, x: Tensor, key: Tensor) -> Tensor:
        p, (c, h, w) = self.settings.padding, x.shape
        mode = {"zero": "constant", "reflect": "reflect", "edge": "replicate"}[self.settings.fill]
        wide = F.pad(x[None], (p, p, p, p), mode)[0]
        start = (keys.uniform(key, (2,), torch.float32) * (2 * p + 1)).long()
        rows = (torch.arange(h, device=x.device) + start[0])[None, :, None].expand(c, h, w + 2 * p)
        columns = (torch.arange(w, device=x.device) + start[1])[None, None, :].expand(c, h, w)
        return wide.gather(1, rows).gather(2, columns)
