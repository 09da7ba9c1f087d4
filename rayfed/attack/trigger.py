"""Trigger (backdoor): attackers teach the model that whatever carries a mark is of their class."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed.attack import Attack, AttackSettings, Rows
from rayfed.attack.label_flip import wrong_class


class Settings(AttackSettings):
    """The mark and the class."""

    target: int = Field(ge=0, description="The attackers' class.")
    share: float = Field(
        0.5, gt=0, le=1, description="Share of an attacker's training rows of other classes that are marked."
    )
    size: int = Field(
        3, ge=1, description="Side of the square in the lower right corner; of vectors, their last entries."
    )


class Trigger(Attack):
    """Gu et al. 2017, "BadNets" (1708.06733), at clients as in Bagdasaryan et al. 2020, "How To Backdoor Federated Learning"
    (1807.00459); with `scale` on the same clients it is their model replacement.

    A share of an attacker's training rows gets a square of the largest value and the label `target`. Scope `backdoor` scores
    honest clients' models on marked copies of their test rows of the other classes.
    """

    Settings = Settings
    place: ClassVar[Literal["data", "update", "craft"]] = "data"
    relabels: ClassVar[bool] = True
    marks: ClassVar[bool] = True

    def fits(self, rows: Rows) -> str | None:
        if rows.kind in ("text", "instruct"):
            return f"kind: trigger found, these data are {rows.kind}; allowed: images and vectors"
        return wrong_class(self.settings, ("target",), rows.classes)

    def stamp(self, x: np.ndarray, rows: Rows) -> np.ndarray:
        """Return marked copies of inputs (m, ...)."""
        x, k = x.copy(), self.settings.size
        if rows.kind == "image":
            x[..., -k:, -k:] = rows.high
        else:
            x[..., -k:] = rows.high
        return x

    def poison(
        self, x: np.ndarray, y: np.ndarray, rows: Rows, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        others = rng.permutation(np.flatnonzero(y != self.settings.target))
        at = others[: int(np.ceil(self.settings.share * len(others)))]
        x, y = x.copy(), y.copy()
        x[at], y[at] = self.stamp(x[at], rows), self.settings.target
        return x, y
