"""Agglomerative clustering of signatures by cosine."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from rayfed.cluster import Clusterer, ClustererSettings, Evidence


class Agglomerative(Clusterer):
    """Distance 1 - <s_i, s_j>; merges until `clusters` are left, or, with a threshold, until no two are closer than that."""

    class Settings(ClustererSettings):
        linkage: Literal["average", "complete", "single"] = Field(
            "average", description="Distance between two clusters."
        )
        threshold: float | None = Field(
            None, gt=0, le=2, description="Cosine distance at which merging stops; null: fixed number."
        )

    @property
    def takes_number(self) -> bool:
        return self.settings.threshold is None

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        from sklearn.cluster import AgglomerativeClustering

        n = len(evidence.ids)
        if n < 2:
            return np.zeros(n, np.int64)
        s = evidence.signatures.double()
        distance = (1.0 - s @ s.T).clamp(min=0).fill_diagonal_(0).numpy()
        stop = (
            {"n_clusters": None, "distance_threshold": self.settings.threshold}
            if self.settings.threshold
            else {"n_clusters": min(clusters, n)}
        )
        return AgglomerativeClustering(metric="precomputed", linkage=self.settings.linkage, **stop).fit_predict(
            distance
        )
