"""One bit for each entry: its sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from rayfed.lazy import torch
from rayfed.transform import At, Piece, Transform, TransformSettings, get

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Sign(Transform):
    """EF-signSGD: Karimireddy et al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes" (1901.09847):
    C(v) = (|v|_1 / d) sgn(v), sgn(0) = 1 here; what that leaves out is added to the client's next update.

    Sent: a bit for each entry, and 32 bits for |v|_1 / d.
    """

    class Settings(TransformSettings):
        error_feedback: bool | None = Field(
            None,
            description="What the signs leave out is added to the client's next update; default true, but false after topk, randomk "
            "or lowrank, whose own error_feedback keeps it too.",
        )

    place = "code"
    lossy = True

    @property
    def feedback(self) -> bool:
        asked: bool | None = self.settings.error_feedback
        if asked is not None or self.config is None:
            return asked is not False
        return all(get(t.kind).place != "compress" for t in self.config.transforms)

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        return torch.where(v < 0, -1.0, 1.0).to(v.dtype), {"scale": v.abs().mean()}, {}

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        return sent * beside["scale"]

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        return n, 1, 32
