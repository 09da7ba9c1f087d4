"""Mean shift on rows of distances between updates."""

from __future__ import annotations

import numpy as np

from rayfed.cluster import Clusterer, Evidence
from rayfed.cluster.bipartition import cosines


class MeanShift(Clusterer):
    """Mean shift (Comaniciu and Meer 2002), from scikit-learn: a client's vector are its distances, 1 - cosine of updates, to all
    clients, as OCFL's code has it; bandwidth by its estimate."""

    takes_number = False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        from sklearn.cluster import MeanShift as Sklearn
        from sklearn.cluster import estimate_bandwidth

        gaps = 1.0 - cosines(evidence.gram().double().numpy())
        if len(gaps) < 2 or not estimate_bandwidth(gaps):
            return np.zeros(len(gaps), np.int64)
        return Sklearn().fit_predict(gaps).astype(np.int64)
