"""k-means of the clients' solutions, from inner products alone: the solutions stay where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from rayfed.cluster import Clusterer, ClustererSettings, Evidence, canonical

if TYPE_CHECKING:
    from torch import Tensor


class KMeans(Clusterer):
    """argmin over partitions of sum_i ||w_i - mean of its cluster||^2 into `clusters` clusters (FeSEM, Xie et al. 2021).

    Clients that started from one model are compared by their updates: the distances are the same.
    """

    class Settings(ClustererSettings):
        restarts: int = Field(10, ge=1, description="k-means++ starts; the one with the least sum of squares is taken.")

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        return kmeans(evidence.gram(), clusters, evidence.key, restarts=self.settings.restarts)


def kmeans(gram: Tensor, clusters: int, key: int, *, weight: Any = None, restarts: int = 10) -> np.ndarray:
    """Run k-means++ and Lloyd's steps on n points given by their inner products (n, n); return labels (n,) by first member.

    weight: (n,) weights of the points, None for equal ones. With fewer points than clusters each point is a cluster.
    """
    from sklearn.cluster import KMeans as Lloyd

    n = len(gram)
    if n <= clusters:
        return np.arange(n)
    # Points in at most n dimensions with these inner products, about their mean: distances of solutions can be much
    # smaller than their norms.
    g = gram.double().numpy()
    centre = np.eye(n) - 1.0 / n
    values, vectors = np.linalg.eigh(centre @ (g + g.T) @ centre / 2)
    points = vectors * np.sqrt(values.clip(min=0))
    found = Lloyd(clusters, init="k-means++", n_init=restarts, random_state=key % (1 << 32))
    return canonical(found.fit(points, sample_weight=weight).labels_)
