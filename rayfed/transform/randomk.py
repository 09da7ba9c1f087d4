"""Random entries of an update, the same for all clients of a round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import keys
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.transform import At, Piece, Transform, TransformSettings
from rayfed.transform.topk import kept

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class RandomK(Transform):
    """Konecny et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency" (1610.05492), random mask: k =
    fraction of d entries, drawn anew in each round from a seed that server and clients share, so that no index travels.

    The paper draws a mask per client; with one for all of them, means are over the same entries.
    """

    class Settings(TransformSettings):
        needs: ClassVar = {
            "error_feedback": (Need("unbiased", (False,)),)
        }  # what d / k times leaves out grows without bound

        fraction: float = Field(gt=0, le=1, description="Share of the entries that is sent; at least one.")
        unbiased: bool = Field(
            True, description="Entries count d / k times, so that the mean over the draws is the update."
        )
        error_feedback: bool = Field(
            False, description="What is left out is added to the client's next update; only with unbiased: false."
        )

    lossy = True

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        k = kept(self.settings.fraction, len(v))
        # Numbers of 24 bits tie in a million entries; the order of equal ones is that of a stable sort.
        indices = torch.argsort(keys.uniform(at.common, (len(v),), torch.float64), stable=True)[:k]
        return v.gather(0, indices), {"indices": indices}, {}

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        sent = sent * (len(like) / len(sent)) if self.settings.unbiased else sent
        return torch.zeros_like(like).scatter(0, beside["indices"], sent)

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        return kept(self.settings.fraction, n), bits, 0
