"""Rank reversal: what an attacker's update moves most it moves least, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import tree
from rayfed.attack import Attack

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class RankReversal(Attack):
    """The attack of Mozaffari et al. 2023, "Every Vote Counts" (2110.04350), on updates: within each tensor the sorted values are
    handed out in the reverse order of their ranks, so the values stay and their places turn.

    There attackers average their ranks before they reverse them; here each reverses its own.
    """

    def change(self, update: Tree, key: Tensor) -> Tree:
        def reversed_(x: Tensor) -> Tensor:
            flat = x.reshape(-1)
            values, order = flat.sort(stable=True)
            return flat.scatter(0, order, values.flip(0)).reshape(x.shape)

        return tree.map(reversed_, update)
