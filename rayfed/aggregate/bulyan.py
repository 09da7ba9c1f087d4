"""Bulyan: Krum chooses, a mean around the coordinate median follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rayfed.aggregate import Evidence, Tolerant, equal_shares, krum_scores
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Bulyan(Tolerant):
    """El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium" (1802.07927), algorithm 2.

    n - 2 f updates are chosen one by one, each by Krum among those that are left; each coordinate is the mean of the n - 4 f
    chosen ones' that are nearest to their median. n >= 4 f + 3.
    Among the last few that are left Krum's n' - f - 2 nearest others would be fewer than one: one is taken [ours].
    """

    needs: ClassVar[tuple[str, ...]] = ("gram", "rows")
    condition: ClassVar[str] = "n >= 4 f + 3"

    def fewest(self, f: int) -> int:
        return 4 * f + 3

    def weigh(self, seen: Evidence) -> np.ndarray:
        n, f = len(seen.gram), self.settings.f
        left = list(range(n))
        chosen: list[int] = []
        while len(chosen) < n - 2 * f:
            best = int(np.argmin(krum_scores(seen.gram[np.ix_(left, left)], f))) if len(left) > 1 else 0
            chosen.append(left.pop(best))
        return equal_shares(np.array(chosen), n)

    def combine(self, rows: Tensor) -> Tensor:
        x = rows.sort(0).values
        m = len(x)
        middle = (x[(m - 1) // 2] + x[m // 2]) / 2
        nearest = torch.argsort((x - middle).abs(), dim=0, stable=True)[: m - 2 * self.settings.f]
        return torch.gather(x, 0, nearest).mean(0)
