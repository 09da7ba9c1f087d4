"""CFL's recursive bipartition: a cluster whose members pull apart is cut in two by the cosines of their updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from rayfed.cluster import Clusterer, ClustererSettings, Evidence

if TYPE_CHECKING:
    from torch import Tensor


class Settings(ClustererSettings):
    """When a cluster is cut."""

    relative: bool = Field(
        True,
        description="Thresholds as shares (ours): eps_1 of the cluster's largest update norm, eps_2 of the largest of any "
        "client so far; false: norms, as in the paper.",
    )
    eps_1: float = Field(0.3, gt=0, description="Cut only if the norm of the cluster's mean update is below this.")
    eps_2: float = Field(0.2, ge=0, description="Cut only if the largest norm of a member's update is above this.")


class Bipartition(Clusterer):
    """Cut, and cut again, while the criterion of Sattler et al. 2020 holds; `clusters` is not used.

    All updates are of one round and from one model, so all cuts are made at once.
    """

    Settings = Settings
    takes_number = False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        gram = evidence.gram().double().numpy()
        scale = float(np.sqrt(gram.diagonal().max(initial=0)))
        labels, waiting, fresh = np.zeros(len(gram), np.int64), [0], 1
        while waiting:
            members = np.flatnonzero(labels == waiting.pop())
            halves = bipartition(gram[np.ix_(members, members)], self.settings, scale)
            if halves is not None:
                labels[members] = fresh + halves
                waiting += [fresh, fresh + 1]
                fresh += 2
        return labels


def bipartition(gram: Tensor | np.ndarray, settings: Any, scale: float, weight: Any = None) -> np.ndarray | None:
    """Return halves (m,), 0 or 1, of a cluster whose members' updates have inner products `gram` (m, m), or None.

    Cut iff ||mean update|| < eps_1, max ||update|| > eps_2 and m > 2, by complete linkage on 1 - cosine (Sattler et al.
    2020, algorithm 1). scale: largest update norm so far, for `relative`; weight: (m,) weights of the mean.
    """
    from sklearn.cluster import AgglomerativeClustering

    g = np.asarray(gram, np.float64)
    if len(g) <= 2:
        return None
    w = np.ones(len(g)) if weight is None else np.asarray(weight, np.float64)
    w = w / w.sum()
    norms = np.sqrt(g.diagonal().clip(min=0))
    of_mean, largest = float(np.sqrt(max(0.0, w @ g @ w))), float(norms.max())
    still, moving = (
        (settings.eps_1 * largest, settings.eps_2 * scale) if settings.relative else (settings.eps_1, settings.eps_2)
    )
    if not (of_mean < still and largest > moving):
        return None
    cut = AgglomerativeClustering(2, metric="precomputed", linkage="complete").fit_predict(1.0 - cosines(g))
    return np.asarray(cut if cut[0] == 0 else 1 - cut)


def cosines(gram: np.ndarray) -> np.ndarray:
    """Return (n, n) cosines in [-1, 1] from inner products: symmetric, 1 on the diagonal; 0 with a vector of length 0."""
    norms = np.sqrt(gram.diagonal().clip(min=0))
    c = gram / np.outer(*[np.where(norms > 0, norms, 1)] * 2)
    c = ((c + c.T) / 2).clip(-1, 1)
    np.fill_diagonal(c, 1)
    return c
