"""The largest entries of an update, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from rayfed.lazy import torch
from rayfed.transform import At, Piece, Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class TopK(Transform):
    """Stich et al. 2018, "Sparsified SGD with Memory" (1809.07599): the k entries that are largest in magnitude are sent, k =
    fraction of d, and what is left out is added to the client's next update (its memory m_i).

    Sent: k values and as many indices of 32 bits.
    """

    class Settings(TransformSettings):
        fraction: float = Field(gt=0, le=1, description="Share of the entries that is sent; at least one.")
        error_feedback: bool = Field(True, description="What is left out is added to the client's next update.")

    lossy = True

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        indices = torch.topk(v.abs(), kept(self.settings.fraction, len(v))).indices
        return v.gather(0, indices), {"indices": indices}, {}

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        return torch.zeros_like(like).scatter(0, beside["indices"], sent)

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        k = kept(self.settings.fraction, n)
        return k, bits, 32 * k


def kept(fraction: float, n: int) -> int:
    """Return how many of n entries a share of them is: at least one."""
    return min(n, max(1, round(fraction * n)))
