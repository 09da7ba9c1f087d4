"""A little is enough: attackers stay within the spread of honest updates."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed.attack import Attack, AttackSettings

if TYPE_CHECKING:
    from torch import Tensor


class Settings(AttackSettings):
    """How far from the mean."""

    z: float | None = Field(
        None, ge=0, description="Standard deviations below the mean; default: the paper's largest that hides."
    )


class LittleIsEnough(Attack):
    """Baruch, Baruch and Goldberg 2019, "A Little Is Enough: Circumventing Defenses For Distributed Learning" (1902.06156).

    All attackers send mean - z std, coordinate by coordinate, of their own honest updates. Of n clients asked and m attackers,
    s = floor(n / 2 + 1) - m honest ones have to be farther off: z is the largest with Phi(z) < (n - m - s) / (n - m).
    """

    Settings = Settings
    place: ClassVar[Literal["data", "update", "craft"]] = "craft"

    def craft(self, rows: Tensor, asked: int) -> Tensor:
        z = largest_z(asked, len(rows)) if self.settings.z is None else self.settings.z
        return rows.mean(0) - z * rows.std(0, correction=0)


def largest_z(n: int, m: int) -> float:
    """Return the paper's z of n clients of whom m attack; 0 where no number hides (attackers are in the majority, or nearly)."""
    s = n // 2 + 1 - m
    share = (n - m - s) / (n - m) if n > m else 1.0
    return max(0.0, NormalDist().inv_cdf(min(max(share, 1e-6), 1 - 1e-6)))
