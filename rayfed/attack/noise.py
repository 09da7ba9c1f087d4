"""Noise: attackers send random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rayfed import keys, tree
from rayfed.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Settings(AttackSettings):
    """Which numbers."""

    draw: Literal["normal", "uniform"] = Field("normal", description="Of N(0, size^2), or uniform in [0, size).")
    size: float = Field(1.0, gt=0, description="Their size, in the parameters' units.")
    add: bool = Field(False, description="Added to the update, or sent in its place.")


class Noise(Attack):
    """Random updates: Gaussian as in Blanchard et al. 2017 (1703.02757), or uniform in [0, 1) as in the experiments of "Flag
    Aggregator" (ICLR 2024)."""

    Settings = Settings

    def change(self, update: Tree, key: Tensor) -> Tree:
        s, number = self.settings, iter(range(10**9))

        def drawn(x: Tensor) -> Tensor:
            of = keys.normal if s.draw == "normal" else keys.uniform
            noise = s.size * of(keys.fold(key, next(number)), tuple(x.shape), x.dtype)
            return x + noise if s.add else noise

        return tree.map(drawn, update)
