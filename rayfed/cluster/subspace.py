"""PACFL's clusters: principal angles between the subspaces that the clients' inputs span."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed.cluster import MISSING, Clusterer, ClustererSettings, Evidence, canonical
from rayfed.config.schema import Need
from rayfed.lazy import torch
from rayfed.visits import ClientContext, Phase, Visit, whole

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.task import Task
    from rayfed.tree import Tree


class Settings(ClustererSettings):
    """How subspaces are taken and compared."""

    needs: ClassVar = {"relative": (Need("threshold", (None,), but=True),)}

    basis: int = Field(3, ge=1, description="Left singular vectors per class, p.")
    angles: Literal["principal", "entries"] = Field(
        "entries",
        description="True principal angles of the spans, or arccos of the entries of U_i' U_j (the authors' code).",
    )
    measure: Literal["smallest", "sum"] = Field(
        "sum", description="Proximity: the smallest angle, or their sum (of entries: the trace); degrees."
    )
    linkage: Literal["weighted", "average", "complete", "single"] = Field(
        "weighted",
        description="Distance of a merged cluster: (a + b) / 2, or the mean, largest, smallest of its pairs.",
    )
    threshold: float | None = Field(
        None, ge=0, description="Proximity, degrees, at which merging stops; null: merge until `clusters` are left."
    )
    relative: bool = Field(False, description="The threshold is a share of the median proximity of two clients (ours).")


class Subspace(Clusterer):
    """Hierarchical clustering of principal angles (Vahidian et al. 2023, 2209.10526). A client's basis does not change:
    it goes up once."""

    Settings = Settings

    @property
    def takes_number(self) -> bool:
        return self.settings.threshold is None

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        bases, labels = evidence.bases(), np.full(len(evidence.ids), MISSING)
        here = [i for i, c in enumerate(evidence.ids) if c in bases]
        if here:
            stacked = torch.stack([bases[evidence.ids[i]] for i in here])
            labels[here] = group(proximity(stacked, self.settings), self.settings, clusters)
        return labels


def basis_visit(task: Task, p: int) -> Visit:
    """Return a visit that sends `bases` (F, C p): for each class the p first left singular vectors of its training inputs (F, n_c).

    Columns of a class beyond its rank, and of an absent class, are 0. A vector's largest entry is positive.
    """
    features, classes = math.prod(task.input_shape), task.classes

    def begin(client: ClientContext) -> Tree:
        return {"bases": torch.zeros(features, classes * p, dtype=task.dtype, device=task.device)}

    def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
        of = (batch["y"][:, None] == torch.arange(classes, device=task.device)) * (batch["w"] > 0)[:, None]  # (B, C)
        x = batch["x"].flatten(1).to(task.dtype)
        u, s, _ = torch.linalg.svd(of.T[:, None].to(task.dtype) * x.T, full_matrices=False)  # (C, F, r), (C, r)
        u, s = u[..., :p], s[..., :p]
        real = s > max(x.shape) * torch.finfo(task.dtype).eps * s[:, :1]
        largest = torch.gather(u, 1, u.abs().argmax(1, keepdim=True))
        u = torch.where(real[:, None], u * torch.where(largest < 0, -1, 1), 0)
        u = torch.cat([u, u.new_zeros(classes, features, p - u.shape[-1])], -1)
        return {"bases": u.permute(1, 0, 2).reshape(features, classes * p)}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {"bases": carry["bases"]}, client.own

    return Visit(begin, [Phase(whole("train"), step, counts=False)], end)


def proximity(bases: Tensor, settings: Any, to: Tensor | None = None) -> np.ndarray:
    """Return (n, m) proximities, degrees, of bases (n, F, q) to bases (m, F, q), or to each other (0 on the diagonal).

    A direction that only one of two clients has stands at 90 degrees to the other; one that neither has does not count.
    """
    a, b = bases.double(), (bases if to is None else to).double()
    if settings.angles == "principal":
        a, b = _orthonormal(a), _orthonormal(b)
    has_a, has_b = (x.norm(dim=1) > 0 for x in (a, b))  # (n, q), (m, q)
    rows = []
    for u, mine in zip(a, has_a, strict=True):
        inner = u.T @ b  # (m, q, q)
        if settings.angles == "principal":
            angle = _degrees(torch.linalg.svdvals(inner))
            # both spans' directions are counted from the first on
            count = torch.maximum(mine.sum(), has_b.sum(1))[:, None]
            counts = torch.arange(angle.shape[1]) < count
        elif settings.measure == "sum":
            angle = _degrees(torch.diagonal(inner, dim1=1, dim2=2))
            counts = mine | has_b
        else:
            angle = _degrees(inner).flatten(1)
            counts = (mine[:, None] & has_b[:, None]).flatten(1)
        if settings.measure == "sum":
            rows.append(torch.where(counts, angle, 0.0).sum(1))
        else:
            nearest = torch.where(counts, angle, torch.inf).amin(1)
            rows.append(torch.where(nearest.isinf(), 90.0, nearest))
    out = torch.stack(rows).numpy()
    if to is None:
        out = (out + out.T) / 2
        np.fill_diagonal(out, 0)
    return out


def _degrees(cosine: Tensor) -> Tensor:
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def _orthonormal(bases: Tensor) -> Tensor:
    """Return orthonormal bases of the same spans, (n, F, q); columns beyond the rank are 0."""
    u, s, _ = torch.linalg.svd(bases, full_matrices=False)
    u = torch.where((s > max(bases.shape[1:]) * torch.finfo(torch.float32).eps * s[:, :1])[:, None], u, 0)
    return torch.cat([u, u.new_zeros(*u.shape[:2], bases.shape[2] - u.shape[2])], -1)


def group(distance: np.ndarray, settings: Any, clusters: int) -> np.ndarray:
    """Return labels (n,), numbered by first member, of hierarchical clustering of proximities (n, n)."""
    from scipy.cluster.hierarchy import cut_tree, fcluster, linkage
    from scipy.spatial.distance import squareform

    n = len(distance)
    if n < 2:
        return np.zeros(n, np.int64)
    merges = linkage(squareform(distance, checks=False), settings.linkage)
    if settings.threshold is None:
        return canonical(cut_tree(merges, min(clusters, n))[:, 0])
    limit = settings.threshold * (np.median(squareform(distance, checks=False)) if settings.relative else 1.0)
    return canonical(
        fcluster(merges, np.nextafter(limit, -np.inf), "distance")
    )  # merges at the limit itself do not happen


def join(distance: np.ndarray, labels: np.ndarray, settings: Any) -> np.ndarray:
    """Return the label (n,) of each newcomer: the cluster closest by the linkage; distance (n, m), labels (m,)."""
    reduce = {"complete": np.max, "single": np.min}.get(settings.linkage, np.mean)
    known = np.unique(labels)
    return known[np.stack([reduce(distance[:, labels == k], axis=1) for k in known], 1).argmin(1)]
