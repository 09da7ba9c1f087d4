"""HDBSCAN on the cosines of updates: clusters of any number, and clients that belong to none."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from rayfed.cluster import Clusterer, ClustererSettings, Evidence
from rayfed.cluster.bipartition import cosines


class Settings(ClustererSettings):
    """The least cluster, and what becomes of noise."""

    min_size: int = Field(3, ge=2, description="Least number of clients of a cluster.")
    noise: Literal["together", "nearest"] = Field(
        "together",
        description="Clients of no cluster: a cluster of their own (OCFL's code), or each with its nearest one (ours).",
    )


class HDBSCAN(Clusterer):
    """Density-based clusters (Campello et al. 2013) by 1 - cosine of the clients' updates, from scikit-learn.

    Where no cluster is dense enough all clients are one.
    """

    Settings = Settings
    takes_number = False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        from sklearn.cluster import HDBSCAN as Sklearn

        gaps = np.maximum(1.0 - cosines(evidence.gram().double().numpy()), 0.0)
        n, s = len(gaps), self.settings
        if n < s.min_size + 1:
            return np.zeros(n, np.int64)
        found = Sklearn(min_cluster_size=s.min_size, metric="precomputed", copy=True).fit_predict(gaps).astype(np.int64)
        noise, placed = found < 0, np.flatnonzero(found >= 0)
        if s.noise == "nearest" and len(placed):
            found[noise] = found[placed[gaps[np.ix_(noise, placed)].argmin(1)]]
        return np.where(found < 0, found.max() + 1, found)
