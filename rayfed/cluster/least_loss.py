"""IFCA's choice as a clusterer: each client joins the known expert with the least loss on its training data."""

from __future__ import annotations

import numpy as np

from rayfed.cluster import Clusterer, Evidence
from rayfed.cluster.agglomerative import Agglomerative


class LeastLoss(Clusterer):
    """argmin_k of the known experts' losses (Ghosh et al. 2020); the first round, which knows no expert, clusters signatures."""

    Settings = Agglomerative.Settings

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        losses = evidence.losses()
        if losses is None or losses.shape[1] < clusters:
            return Agglomerative(self.settings).labels(evidence, clusters)
        return losses.argmin(1).numpy()
