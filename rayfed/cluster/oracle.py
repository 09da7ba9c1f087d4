"""The planted groups themselves: the upper bound for any clusterer."""

from __future__ import annotations

import numpy as np

from rayfed.cluster import Clusterer, Evidence


class Oracle(Clusterer):
    """Clients of one planted group form one cluster; `clusters` is not used."""

    takes_number = False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        return evidence.planted(evidence.ids).numpy()

    def ids(self, evidence: Evidence, clusters: int) -> dict[int, int]:
        """Return group -> the id that its members had, present or not."""
        seen = [c for c, k in enumerate(evidence.before) if k >= 0]
        groups = evidence.planted(seen).tolist()
        return {g: int(evidence.before[c]) for c, g in zip(seen, groups, strict=True)}
