"""Sign flip: attackers send their update turned round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import tree
from rayfed.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Settings(AttackSettings):
    """How far."""

    strength: float = Field(1.0, gt=0, description="The update becomes -strength times itself.")


class Sign(Attack):
    """-strength u_i in the place of u_i (the "reversed gradient" of Blanchard et al. 2017 and Damaskinos et al. 2019)."""

    Settings = Settings

    def change(self, update: Tree, key: Tensor) -> Tree:
        return tree.scale(update, -self.settings.strength)
