"""Few bits for each entry, rounded at random so that the mean is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import keys
from rayfed.config.schema import Need
from rayfed.lazy import F, torch
from rayfed.transform import At, Piece, Transform, TransformSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Quantise(Transform):
    """QSGD: Alistarh et al. 2017, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding" (1610.02132). In
    each bucket of entries, s = 2^(bits - 1) - 1 levels,
        Q(v_i) = |v| sgn(v_i) l_i / s,  l_i = floor(s |v_i| / |v|) or the next whole number, so that the mean is s |v_i| / |v|.

    Sent: a sign and a level for each entry, `bits` of fixed length (the paper adds an Elias code), and 32 bits for the scale of
    each bucket.
    With `range` R all clients have one scale, Q(v_i) = R sgn(v_i) l_i / s of entries cut to [-R, R], and no scale travels: sums of
    levels are then sums of updates, which `mask` needs.
    """

    class Settings(TransformSettings):
        needs: ClassVar = {
            "bucket": (Need("range", (None,)),),
            "norm": (Need("range", (None,)),),
        }

        bits: int = Field(8, ge=2, le=24, description="Bits of an entry, its sign among them.")
        bucket: int = Field(512, ge=1, description="Entries that share a scale.")
        norm: Literal["l2", "max"] = Field(
            "l2", description="Scale of a bucket: its Euclidean norm, or its largest magnitude."
        )
        range: float | None = Field(None, gt=0, description="One scale for all, in place of the buckets' own.")
        error_feedback: bool = Field(False, description="What rounding changes is taken off the client's next update.")

    place = "code"
    lossy = True

    @property
    def levels(self) -> int:
        """Return s."""
        return (1 << (self.settings.bits - 1)) - 1

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        scales = self._scales(v)
        wide = self._wide(scales, len(v))
        share = (v.abs() / torch.where(wide > 0, wide, 1.0)).clamp(max=1.0)
        levels = torch.floor(share * self.levels + keys.uniform(at.key, v.shape, v.dtype)).clamp(max=self.levels)
        return torch.copysign(levels, v), {"scales": scales}, {}

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        return sent * (self._wide(beside["scales"], len(sent)) / self.levels)

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        s = self.settings
        return n, s.bits, 0 if s.range is not None else 32 * math.ceil(n / s.bucket)

    def _scales(self, v: Tensor) -> Tensor:
        """Return the scale of each bucket, (buckets,)."""
        s = self.settings
        if s.range is not None:
            return torch.full((1,), s.range, dtype=v.dtype, device=v.device)
        buckets = F.pad(v, (0, -len(v) % s.bucket)).reshape(-1, s.bucket)
        return torch.linalg.vector_norm(buckets, ord=2 if s.norm == "l2" else math.inf, dim=1)

    def _wide(self, scales: Tensor, n: int) -> Tensor:
        """Return each entry's scale, (n,)."""
        width = n if self.settings.range is not None else self.settings.bucket
        return scales[:, None].expand(-1, width).reshape(-1)[:n]
