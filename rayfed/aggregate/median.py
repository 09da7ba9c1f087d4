"""Coordinate median."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed.aggregate import Aggregator

if TYPE_CHECKING:
    from torch import Tensor


class Median(Aggregator):
    """Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates" (1803.01498), option 1.

    Each coordinate is the median of the replies'; of an even number the mean of the two in the middle. Clients count equally.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def combine(self, rows: Tensor) -> Tensor:
        n, x = len(rows), rows.sort(0).values
        return (x[(n - 1) // 2] + x[n // 2]) / 2
