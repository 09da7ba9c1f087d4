"""Krum: the one update that is nearest to most others."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rayfed.aggregate import Evidence, Tolerant, equal_shares, krum_scores


class Krum(Tolerant):
    """Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent" (1703.02757).

    The update whose n - f - 2 nearest others are least far (sum of squared distances) is taken alone; of equal ones that of
    the lowest client. n >= 2 f + 3.
    """

    condition: ClassVar[str] = "n >= 2 f + 3"

    def fewest(self, f: int) -> int:
        return 2 * f + 3

    def weigh(self, seen: Evidence) -> np.ndarray:
        scores = krum_scores(seen.gram, self.settings.f)
        return equal_shares(np.argmin(scores, keepdims=True), len(scores))
