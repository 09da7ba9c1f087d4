"""IFCA's choice as a clusterer: each client joins the known expert with the least loss on its training data."""

from __future__ import annotations

import numpy as np

from rayfed.cluster import MISSING, Clusterer, Evidence
from rayfed.cluster.agglomerative import Agglomerative


class LeastLoss(Clusterer):
    """argmin_k of the known experts' losses (Ghosh et al. 2020); an expert that nobody chose stays, and may be chosen later.

    While fewer than `clusters` experts are known, as in the first round, signatures are clustered.
    """

    Settings = Agglomerative.Settings
    keeps = True
    takes_number = True

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        if len(evidence.known) < clusters:
            return Agglomerative(self.settings).labels(evidence, clusters)
        losses = evidence.losses()
        return np.array([int(losses[c].argmin()) if c in losses else MISSING for c in evidence.ids], np.int64)

    def ids(self, evidence: Evidence, clusters: int) -> dict[int, int] | None:
        return dict(enumerate(evidence.known)) if len(evidence.known) >= clusters else None
