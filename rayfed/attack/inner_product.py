"""Inner-product manipulation: attackers turn the mean round a little."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor


class Settings(AttackSettings):
    """How much."""

    epsilon: float = Field(0.1, gt=0, description="All attackers send -epsilon times the mean of their honest updates.")


class InnerProduct(Attack):
    """Xie, Koyejo and Gupta 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation" (1903.03936).

    All attackers send -epsilon times a mean; the paper's is that of the honest clients, which attackers do not know here: it is
    their own honest updates'.
    """

    Settings = Settings
    place: ClassVar[Literal["data", "update", "craft"]] = "craft"

    def craft(self, rows: Tensor, asked: int) -> Tensor:
        return -self.settings.epsilon * rows.mean(0)
