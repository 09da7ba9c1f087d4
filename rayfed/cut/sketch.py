"""Count sketches of what crosses a cut."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayfed import keys
from rayfed.cut import At, CutTransform, Message, TransformSettings, crossing
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Sketch(CutTransform):
    """Count sketch (Charikar et al. 2002): each vector u (d,), activations and gradients alike, travels as `rows` x w numbers,
    C_j[h_j(i)] += g_j(i) u_i, w = ceil(`width` d), and arrives as median over j of g_j(i) C_j[h_j(i)].

    h_j and the signs g_j follow from the run's seed, for all clients. h_j deals the places out evenly, so that with `width: 1` and
    `rows: 1` nothing is lost. Of an even number of rows the median is the mean of the middle two. The gradient is that of the identity,
    sketched alike; the median of it is biased.
    """

    class Settings(TransformSettings):
        rows: int = Field(3, ge=1, le=15, description="Rows J of the sketch, of which the median is taken.")
        width: float = Field(0.25, gt=0, le=1, description="Places of a row over the vector's length.")

    def __init__(self, settings: Any, seed: int):
        super().__init__(settings, seed)
        self.tables = cache(self._tables)

    def __call__(self, h: Tensor, at: At) -> Tensor:
        return crossing(h, self.arrives, self.arrives)

    def places(self, d: int) -> int:
        """Return w."""
        return math.ceil(self.settings.width * d)

    def _tables(self, d: int) -> Tensor:
        """Return the (J, d, w) tables whose entry (j, i, h_j(i)) is g_j(i), and 0 elsewhere."""
        rng, w, j = keys.numpy(keys.key(self.seed, 0, -1, f"sketch of {d}")), self.places(d), self.settings.rows
        made = torch.zeros(j, d, w)
        for row in made:
            row[range(d), rng.permutation(d) % w] = torch.as_tensor(rng.choice([-1.0, 1.0], d), dtype=made.dtype)
        return made

    def rows(self, u: Tensor) -> Tensor:
        """Return what each row of the sketch says of vectors (..., d), (J, ..., d): linear in them, and unbiased over the signs."""
        tables = self.tables(u.shape[-1]).to(u.device, u.dtype)
        return torch.stack([(u @ s) @ s.T for s in tables])

    def arrives(self, u: Tensor) -> Tensor:
        """Return the vectors that are read from the sketch, (..., d)."""
        found = self.rows(u).sort(0).values
        j = self.settings.rows
        return (found[(j - 1) // 2] + found[j // 2]) / 2

    def size(self, message: Message) -> Message:
        return message._replace(width=self.settings.rows * self.places(message.width))
