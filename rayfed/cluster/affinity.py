"""Affinity propagation on the cosines of updates."""

from __future__ import annotations

import warnings

import numpy as np
from pydantic import Field

from rayfed.cluster import Clusterer, ClustererSettings, Evidence
from rayfed.cluster.bipartition import cosines


class Settings(ClustererSettings):
    """How messages are damped."""

    damping: float = Field(0.5, ge=0.5, lt=1, description="Share of the old message in a new one.")


class Affinity(Clusterer):
    """Affinity propagation (Frey and Dueck 2007) on cosines of the clients' updates, from scikit-learn; where it does not converge
    all clients are one cluster."""

    Settings = Settings
    takes_number = False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        from sklearn.cluster import AffinityPropagation

        alike = cosines(evidence.gram().double().numpy())
        if len(alike) < 3:
            return np.zeros(len(alike), np.int64)
        made = AffinityPropagation(
            damping=self.settings.damping, affinity="precomputed", random_state=evidence.key % 2**32, max_iter=1000
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge, or that all are equally alike, is handled here
            found = made.fit_predict(alike)
        return np.zeros(len(alike), np.int64) if (found < 0).any() else found.astype(np.int64)
