"""Multi-Krum: the mean of the updates that are nearest to most others."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from rayfed.aggregate import Evidence, Tolerant, TolerantSettings, equal_shares, krum_scores


class Settings(TolerantSettings):
    """How many updates are averaged."""

    m: int | None = Field(None, ge=1, description="Updates that are averaged; default: n - f.")


class MultiKrum(Tolerant):
    """Blanchard et al. 2017 (1703.02757), section 4: the plain mean of the m updates of least Krum score.

    m is n - f unless set, and never more than n - f of the replies that are there. n >= 2 f + 3.
    """

    Settings = Settings
    condition: ClassVar[str] = "n >= 2 f + 3"

    def fewest(self, f: int) -> int:
        return 2 * f + 3

    def check(self, clients: int) -> list[str]:
        if wrong := super().check(clients):
            return wrong
        s = self.settings
        if s.m is not None and s.m > clients - s.f:
            return [
                f"aggregate.m: {s.m} found, of {clients} clients asked in a round {s.f} may attack; allowed: at most "
                f"{clients - s.f} (n - f)"
            ]
        return []

    def weigh(self, seen: Evidence) -> np.ndarray:
        s, n = self.settings, len(seen.gram)
        order = np.argsort(krum_scores(seen.gram, s.f), kind="stable")
        return equal_shares(order[: min(s.m or n - s.f, n - s.f)], n)
