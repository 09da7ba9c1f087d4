"""Trimmed mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed.aggregate import Tolerant

if TYPE_CHECKING:
    from torch import Tensor


class TrimmedMean(Tolerant):
    """Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (1803.01498), option 2.

    Each coordinate is the mean of the replies' without the f largest and the f smallest. Clients count equally; with f = 0 it is
    their plain mean. n >= 2 f + 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def combine(self, rows: Tensor) -> Tensor:
        f = self.settings.f
        return rows.sort(0).values[f : len(rows) - f].mean(0)
