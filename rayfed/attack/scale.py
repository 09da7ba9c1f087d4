"""Scaled updates (model replacement)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import tree
from rayfed.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Settings(AttackSettings):
    """By how much."""

    factor: float = Field(10.0, gt=0, description="The update becomes so many times itself.")


class Scale(Attack):
    """Bagdasaryan et al. 2020, "How To Backdoor Federated Learning" (1807.00459), constrain-and-scale's scaling: gamma u_i, by which
    one attacker outweighs the others' mean. With `trigger` on the same clients it is model replacement."""

    Settings = Settings

    def change(self, update: Tree, key: Tensor) -> Tree:
        return tree.scale(update, self.settings.factor)
