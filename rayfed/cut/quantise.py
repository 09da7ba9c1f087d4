"""Few bits for each number that crosses a cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed.cut import At, CutTransform, Message, TransformSettings, crossing

if TYPE_CHECKING:
    from torch import Tensor


class Quantise(CutTransform):
    """Round every vector, activations and gradients alike, to the nearest of 2 (2^(bits - 1) - 1) + 1 even levels of its largest magnitude:
    Q(v) = s round(v / s), s = max |v| / (2^(bits - 1) - 1).

    Sent: `bits` for each number and 32 for each vector's scale. The gradient is that of the identity, rounded alike.
    """

    class Settings(TransformSettings):
        bits: int = Field(8, ge=2, le=16, description="Bits of a number.")

    def __call__(self, h: Tensor, at: At) -> Tensor:
        return crossing(h, self.rounded, self.rounded)

    def rounded(self, v: Tensor) -> Tensor:
        """Return the nearest levels to vectors (..., d)."""
        levels = (1 << (self.settings.bits - 1)) - 1
        s = v.abs().amax(-1, keepdim=True) / levels
        return s * (v / s.clamp(min=1e-30)).round()

    def size(self, message: Message) -> Message:
        return message._replace(bits=self.settings.bits, beside=message.beside + 32 * message.vectors)
