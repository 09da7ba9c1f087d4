"""IFCA's choice as a clusterer: each client joins the known expert with the least loss on its training data."""

from __future__ import annotations

import numpy as np

from rayfed.cluster import Clusterer, Evidence
from rayfed.cluster.agglomerative import Agglomerative


class LeastLoss(Clusterer):
    """argmin_k of the known experts' losses (Ghosh et al. 2020); the first round, which knows no expert, clusters signatures."""

    Settings = Agglomerative.Settings

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        if len(evidence.known) < clusters:
            return Agglomerative(self.settings).labels(evidence, clusters)
        losses = evidence.losses()
        assert losses is not None
        return losses.argmin(1).numpy()

    def ids(self, evidence: Evidence, clusters: int) -> dict[int, int] | None:
        return dict(enumerate(evidence.known)) if len(evidence.known) >= clusters else None
