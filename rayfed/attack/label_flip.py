"""Label flip: attackers train on wrong labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from rayfed.attack import Attack, AttackSettings, Rows


class Settings(AttackSettings):
    """Which labels become which."""

    source: int | None = Field(None, ge=0, description="Class whose labels are flipped; default: all, y to C - 1 - y.")
    target: int | None = Field(None, ge=0, description="What they become, where `source` is set.")

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if (self.source is None) != (self.target is None):
            raise ValueError("target: source and target belong together; set both or none")
        return self


class LabelFlip(Attack):
    """Tolpegin et al. 2020, "Data Poisoning Attacks Against Federated Learning Systems" (2007.08432): source to target; without
    them every class y becomes C - 1 - y, as Fang et al. 2020 (1911.11815) have it."""

    Settings = Settings
    place: ClassVar[Literal["data", "update", "craft"]] = "data"
    relabels: ClassVar[bool] = True

    def fits(self, rows: Rows) -> str | None:
        if rows.kind == "instruct":
            return "kind: label_flip found, the labels of these data are categories that no loss reads; allowed: attacks on updates"
        return wrong_class(self.settings, ("source", "target"), rows.classes)

    def poison(
        self, x: np.ndarray, y: np.ndarray, rows: Rows, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        s = self.settings
        return x, rows.classes - 1 - y if s.source is None else np.where(y == s.source, s.target, y)


def wrong_class(settings: AttackSettings, names: tuple[str, ...], classes: int) -> str | None:
    """Return the end of a sentence about the first of some settings that names a class that is not there; None if all are."""
    found = ((n, getattr(settings, n)) for n in names)
    wrong = next(((n, c) for n, c in found if c is not None and c >= classes), None)
    return f"{wrong[0]}: {wrong[1]} found, allowed: 0 to {classes - 1}" if wrong else None
