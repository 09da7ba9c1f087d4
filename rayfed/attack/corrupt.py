"""Corrupted pictures: attackers, or broken cameras, train on what no longer shows what it did."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed.attack import Attack, AttackSettings, Rows


class Settings(AttackSettings):
    """What becomes of pictures."""

    how: Literal["noise", "invert", "constant", "blur", "dark"] = Field("noise", description="What is done to them.")
    strength: float = Field(
        0.5,
        ge=0,
        description="noise: its deviation, of the largest value; blur: deviation of the Gaussian filter in pixels; dark: share of the "
        "light that is lost, at most 1. invert and constant do not read it.",
    )


class Corrupt(Attack):
    """Pictures of the attackers' training rows become others, as for the three corrupted clients that FedAgain's abstract has in mind;
    labels stay. noise: Gaussian, cut to the range of values; invert: the largest value less each; blur, dark: as they say; constant: every
    picture is the same checkerboard of cells of two pixels, which any model soon knows by heart (with `scale` on the same clients a
    forger, whose own error is small and whose update is large)."""

    Settings = Settings
    place: ClassVar[Literal["data", "update", "craft"]] = "data"

    def fits(self, rows: Rows) -> str | None:
        if rows.kind != "image":
            return f"kind: corrupt found, the data are no pictures ({rows.kind}); allowed: label_flip, or attacks on updates"
        s = self.settings
        return (
            f"strength: {s.strength:g} found, allowed for dark: at most 1"
            if s.how == "dark" and s.strength > 1
            else None
        )

    def poison(
        self, x: np.ndarray, y: np.ndarray, rows: Rows, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        s = self.settings
        if s.how == "invert":
            made = rows.high - x
        elif s.how == "noise":
            made = np.clip(x + s.strength * rows.high * rng.normal(size=x.shape), 0, rows.high)
        elif s.how == "dark":
            made = (1 - s.strength) * x
        elif s.how == "blur":
            from scipy.ndimage import gaussian_filter

            made = gaussian_filter(x, (0, 0, s.strength, s.strength))
        else:
            row, column = np.indices(x.shape[2:]) // 2
            made = np.broadcast_to(rows.high * ((row + column) % 2), x.shape)
        return made.astype(x.dtype), y
