"""Clusterers: from what a round's clients showed to a partition of them. One file per kind; the folder is the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rayfed.config.schema import Section
from rayfed.errors import nearest

if TYPE_CHECKING:
    from torch import Tensor


MISSING = -2  # label of a client whose evidence did not come; -1 is the group of those without a planted one


class ClustererSettings(Section):
    """Settings of one kind of clusterer: frozen and strict."""


def _absent(what: str) -> Any:
    raise TypeError(f"this method gives its clusterer no {what}")


@dataclass(frozen=True)
class Evidence:
    """What a clusterer may use; what costs an exchange is a function and is called only by those that need it.

    ids: client ids, sorted; signatures: (n, q) unit rows; counts: (n, C) class counts; planted: client ids -> their true
    groups, (n,); losses: () -> client -> (K,) mean loss of each of the K known experts on its training data, without those who
    were asked and did not reply; known: ids of these experts, (K,); before: (N,) the id each client of the federation had
    last, -1 for none; gram: () -> (n, n) inner products of the clients' updates; bases: () -> client -> (F, q) basis of its
    inputs (see `subspace`), without those who did not reply; key: of the round, for clusterers that draw; examples: (n,) n_i;
    trial: (weights (M, n), asked (n, m)) -> (n, m) mean training loss at each client of those of M experts that it is asked of, each
    the common start plus a weighted sum of the updates; NaN of who did not reply; log: (name, value) -> None, by the names of
    `auto.LOGS`; living: whether experts are trained on from where they were, so that one whose cluster is given up is lost.
    """

    ids: Sequence[int]
    signatures: Tensor
    counts: Tensor
    planted: Callable[[Sequence[int]], Tensor]
    losses: Callable[[], dict[int, Tensor]]
    known: Sequence[int] = ()
    before: Sequence[int] = ()
    gram: Callable[[], Tensor] = lambda: _absent("inner products of updates")
    bases: Callable[[], dict[int, Tensor]] = lambda: _absent("bases of inputs")
    key: int = 0
    examples: Sequence[float] = ()
    trial: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda weights, asked: _absent("losses of trial experts")
    log: Callable[[str, float], None] = lambda name, value: None
    living: bool = False


class Clusterer:
    """Base: `labels(evidence, clusters)` gives one integer per client, (n,), or MISSING for one whose evidence did not come.

    keeps: whether a cluster that lost its last client stays known; takes_number: whether it reads how many clusters there shall be.
    """

    Settings: type[ClustererSettings] = ClustererSettings
    keeps: ClassVar[bool] = False

    @property
    def takes_number(self) -> bool:
        return True

    def __init__(self, settings: Any):
        self.settings = settings

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        """Return an integer per client, (n,), or MISSING; clusters: how many, for kinds that take a number."""
        raise TypeError(f"{type(self).__name__} does not say how it clusters")

    def ids(self, evidence: Evidence, clusters: int) -> dict[int, int] | None:
        """Return label -> id of the known cluster that it is, new ones left out; None leaves the matching to the caller."""
        return None


def names() -> list[str]:
    """Return the known kinds."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def make(spec: dict[str, Any]) -> Clusterer:
    """Return the clusterer of `{kind: ..., settings ...}`. Raises ValueError naming the nearest known kind."""
    options = dict(spec)
    kind = str(options.pop("kind", "agglomerative"))
    if kind not in names():
        raise ValueError(f"clusterer {kind!r} is unknown{nearest(kind, names())}; known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    (cls,) = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Clusterer) and c.__module__ == module.__name__
    ]
    return cls(cls.Settings(**options))


def canonical(labels: np.ndarray) -> np.ndarray:
    """Return the same partition numbered 0..K-1 in the order of each cluster's first member."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def match(similarity: np.ndarray, known: Sequence[int], fresh: int, refused: np.ndarray | None = None) -> list[int]:
    """Return persistent ids for this round's clusters by Hungarian assignment on `similarity` (K_new, K_known).

    known: ids of the columns; unmatched new clusters get ids from `fresh` on; refused: pairs that are never matched, whose
    place in the assignment counts 0.
    """
    from scipy.optimize import linear_sum_assignment

    ids = [-1] * similarity.shape[0]
    refused = np.zeros(similarity.shape, bool) if refused is None else refused
    if similarity.size:
        for new, old in zip(*linear_sum_assignment(-np.where(refused, 0.0, similarity)), strict=True):
            if not refused[new, old]:
                ids[new] = int(known[old])
    for i, k in enumerate(ids):
        if k < 0:
            ids[i], fresh = fresh, fresh + 1
    return ids


def persistent_ids(
    experts: Tensor, clients: Sequence[int], labels: np.ndarray, known: Sequence[int], before: Tensor, theirs: Tensor
) -> list[int]:
    """Return persistent ids of this round's clusters: by how alike experts deviate from their mean, and by shared members.

    experts: (K, P) of the round's clusters; clients, labels: (n,) who was put where, or MISSING; known: ids of the experts
    of before, `theirs` (J, P); before: (N,) the id each client had last. The id of an absent client goes to no cluster whose
    expert is unlike its own (alike <= 0) and that shares no member.
    """
    from rayfed.lazy import F, torch

    if not known:
        return list(range(len(experts)))

    def deviations(rows: Tensor) -> Tensor:
        return F.normalize(rows - rows.mean(0, keepdim=True), dim=1)

    alike = deviations(experts) @ deviations(theirs).T
    had = before[list(clients)]
    shared = torch.tensor(
        [[float((had[labels == j] == k).double().mean()) for k in known] for j in range(len(experts))]
    )
    away = before.clone()  # what those hold whom this round puts nowhere
    away[[c for c, k in zip(clients, labels, strict=True) if k != MISSING]] = -1
    held = torch.tensor([bool((away == k).any()) for k in known])
    comparable = len(experts) > 1 or len(known) > 1  # two lone experts deviate from nothing
    refused = comparable & held & (alike <= 0) & (shared == 0)
    similarity = (alike.double() + shared.double()).numpy()
    return match(similarity, known, max(known) + 1, refused.numpy())
