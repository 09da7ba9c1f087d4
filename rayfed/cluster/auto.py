"""Clusters found whatever makes them: candidates from several kinds of evidence, the one that shows best in all of it, and a trial of
the experts that its members would get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from rayfed import keys
from rayfed.cluster import Clusterer, ClustererSettings, Evidence, canonical
from rayfed.cluster.bipartition import cosines
from rayfed.cluster.subspace import Settings as Subspace
from rayfed.cluster.subspace import proximity
from rayfed.lazy import torch

Kind = Literal["signatures", "updates", "counts", "inputs", "losses"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Partition = tuple[int, ...]  # the cluster of each client, by first member
LOGS = {
    **{
        f"clusters/by_{kind}": (f"whether {kind} propose the partition that was taken (clusterer auto)", "0 or 1")
        for kind in KINDS
    },
    "clusters/by_kept": ("whether the partition that was taken is the one there was (clusterer auto)", "0 or 1"),
    "clusters/structure": (
        "how well the best proposed partition shows in all evidence (clusterer auto)",
        "1 = perfectly",
    ),
    "clusters/gain": (
        "how much less clients lose under its experts than under one of all, both without their own fold's updates (clusterer auto)",
        "share of the latter",
    ),
    "clusters/sure": ("that difference over its standard error over clients (clusterer auto)", "standard errors"),
}


class Settings(ClustererSettings):
    """What is proposed, and how it is judged."""

    evidence: tuple[Kind, ...] | None = Field(
        None,
        description="What partitions are proposed from: signatures, whole updates, class counts, spans of inputs, losses of known "
        "experts; null: all that the task has.",
    )
    most: int = Field(8, ge=1, description="Largest number of clusters that is proposed; 1 switches clusters off.")
    least: float = Field(
        0.4, ge=0, le=1, description="Structure that a partition must show to be tried; below it there is one cluster."
    )
    keep: float = Field(
        0.05,
        ge=0,
        description="Structure that another partition must show beyond that of the one there is to take its place.",
    )
    folds: int = Field(
        4, ge=2, description="Folds of a cluster's members: a client measures experts without its own fold's updates."
    )
    sure: float = Field(
        2.0, description="What splitting costs: standard errors over clients by which it must lower their losses."
    )
    basis: int = Field(3, ge=1, description="Left singular vectors of inputs per class, p.")


class Auto(Clusterer):
    """Of the hierarchical clusterings of each kind of evidence into 2, 3, ... `most` clusters, of the partition by the least loss of known
    experts and of the one that clients have, that with the most structure; or one cluster, unless its members are better off (ours).

    Structure: the root mean square over the kinds of evidence of the partition's mean silhouette in this kind's distances, less
    what their nearest pairs are apart; a negative one counts 0. A partition that only one kind shows is thus behind one that several
    show, whatever it is made of.
    Trial: the members of each cluster are dealt into `folds`, and a client measures, on its training rows, the mean of the members
    of the other folds of its cluster, and of those of all clients; a lone member measures the model that all started from. The
    clusters are taken if they lower the mean loss over clients by `sure` standard errors; those that are there stay while they
    lower it, and where experts live for the run, while they show. One ask measures all, forward passes only. `losses` of known
    experts are another ask. Clients that do not reply count nothing in the trial.
    """

    Settings = Settings

    @property
    def takes_number(self) -> bool:
        return False

    def labels(self, evidence: Evidence, clusters: int) -> np.ndarray:
        s, n = self.settings, len(evidence.ids)
        one = np.zeros(n, np.int64)
        if s.most == 1 or n < 3:
            return one
        apart = {kind: d for kind in s.evidence or KINDS if (d := distances(kind, evidence, s.basis))}
        proposed = self.proposed(evidence, apart)
        if not proposed:
            return one
        nearer = [less_nearest(d) for found in apart.values() for d in found]
        shown = {p: structure(np.array(p), nearer) for p in proposed}
        best = max(shown, key=lambda p: shown[p])
        kept = next((p for p, by in proposed.items() if "kept" in by), None)
        if kept is not None and shown[best] <= shown[kept] + s.keep:
            best = kept
        evidence.log("structure", shown[best])
        # what is there stays as long as it is no worse: it need not prove itself anew
        least, sure = (s.least - s.keep, 0.0) if best == kept else (s.least, s.sure)
        stays = best == kept and evidence.living  # experts of many rounds; the trial is of those of one
        taken = shown[best] >= least and (stays or self._standard_errors(best, evidence) > sure)
        for kind in (*KINDS, "kept"):
            evidence.log(f"by_{kind}", float(taken and kind in proposed[best]))
        return np.array(best) if taken else one

    def _standard_errors(self, partition: Partition, evidence: Evidence) -> float:
        """Return by how many standard errors over clients they lose less under their clusters' experts; 0 where nobody replies."""
        lost = cross_fitted([(0,) * len(partition), partition], evidence, self.settings.folds)
        if len(lost) < 2:
            return 0.0
        saved = lost[:, 0] - lost[:, 1]
        sure = float(saved.mean()) / max(float(saved.std(ddof=1)) / len(saved) ** 0.5, 1e-12)
        evidence.log("gain", float(saved.mean() / lost[:, 0].mean()))
        evidence.log("sure", sure)
        return sure

    def proposed(self, evidence: Evidence, apart: dict[Kind, list[np.ndarray]]) -> dict[Partition, set[str]]:
        """Return partitions into two clusters or more -> who proposes them; apart: distances (n, n) by each kind."""
        found: dict[Partition, set[str]] = {}

        def add(labels: np.ndarray, by: str) -> None:
            if len(set(labels.tolist())) > 1:
                found.setdefault(tuple(canonical(labels).tolist()), set()).add(by)

        for kind, distances in apart.items():
            for distance in distances:
                for labels in hierarchy(distance, self.settings.most):
                    add(labels, kind)
        before = np.array([evidence.before[c] if len(evidence.before) else -1 for c in evidence.ids])
        if "losses" in (self.settings.evidence or KINDS):
            chosen = by_losses(evidence)
            if (chosen >= 0).all():
                add(chosen, "losses")
            before = np.where(before < 0, chosen, before)
        if (before >= 0).all():
            add(before, "kept")
        return found


def by_losses(evidence: Evidence) -> np.ndarray:
    """Return the id (n,) of the known expert with the least loss on each client's training data; -1 of who did not reply, or where none
    is known."""
    if len(evidence.known) < 2:
        return np.full(len(evidence.ids), evidence.known[0] if evidence.known else -1)
    told = evidence.losses()
    return np.array([evidence.known[int(told[c].argmin())] if c in told else -1 for c in evidence.ids])


def distances(kind: str, evidence: Evidence, basis: int) -> list[np.ndarray]:
    """Return distances (n, n) between clients by a kind of evidence, 0 on the diagonal; none where it did not come from all, and of
    losses, which are of other models in every round."""
    if kind == "signatures":
        s = evidence.signatures.double().numpy()
        return [1.0 - cosines(s @ s.T)]
    if kind == "updates":
        return [1.0 - cosines(evidence.gram().double().numpy())]
    if kind == "counts":
        root = evidence.counts.double().sqrt().numpy()  # cosines of roots are Bhattacharyya's coefficients of shares
        return [1.0 - cosines(root @ root.T)]
    if kind == "losses":
        return []
    bases = evidence.bases()
    if len(bases) < len(evidence.ids):
        return []
    stacked = torch.stack([bases[c] for c in evidence.ids])
    return [proximity(stacked, Subspace(basis=basis, measure=measure)) for measure in ("sum", "smallest")]


def hierarchy(distance: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield labels (n,) of average-linkage clusterings of distances (n, n) into 2, 3, ... `most` clusters, at most n - 1."""
    from sklearn.cluster import AgglomerativeClustering

    for k in range(2, min(most, len(distance) - 1) + 1):
        yield AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(distance)


def less_nearest(distance: np.ndarray) -> np.ndarray:
    """Return distances (n, n) less their 5 % quantile over pairs, at least 0: sums of angles have an offset that says nothing."""
    pairs = distance[np.triu_indices(len(distance), 1)]
    nearer = (distance - np.quantile(pairs, 0.05)).clip(0)
    np.fill_diagonal(nearer, 0)
    return np.asarray(nearer)


def structure(labels: np.ndarray, distances: Sequence[np.ndarray]) -> float:
    """Return the root mean square of a partition's mean silhouettes in several distances (n, n); a negative one counts 0."""
    from sklearn.metrics import silhouette_samples

    if len(set(labels.tolist())) == len(labels) or not len(distances):  # nobody has a neighbour
        return 0.0
    means = [silhouette_samples(d, labels, metric="precomputed").mean() for d in distances]
    return float(np.sqrt(np.mean(np.maximum(means, 0) ** 2)))


def cross_fitted(partitions: Sequence[Partition], evidence: Evidence, folds: int) -> np.ndarray:
    """Return the cross-fitted loss of each client that replied under each of M partitions, (n, M)."""
    order = keys.numpy(evidence.key).permutation(len(evidence.ids))
    rows: dict[tuple[int, ...], int] = {}  # members of a trial expert -> its row
    asked = np.array(
        [[rows.setdefault(m, len(rows)) for m in others(np.array(p), order, folds)] for p in partitions]
    ).T  # (n, M)
    weights = np.zeros((len(rows), len(order)))
    for members, row in rows.items():
        n = np.array([evidence.examples[i] for i in members])
        weights[row, list(members)] = n / max(n.sum(), 1) if len(n) else 0
    distinct = [np.unique(row, return_inverse=True) for row in asked]
    width = max(len(d) for d, _ in distinct)
    told = evidence.trial(weights, np.stack([np.pad(d, (0, width - len(d)), mode="edge") for d, _ in distinct]))
    losses = np.stack([row[at] for row, (_, at) in zip(told, distinct, strict=True)])  # (n, M)
    return np.asarray(losses[~np.isnan(losses).any(1)])


def others(labels: np.ndarray, order: np.ndarray, folds: int) -> list[tuple[int, ...]]:
    """Return for each client the members of its cluster that are not in its fold, as indices; members are dealt into folds in the
    given order, into as many as there are members at most."""
    found: list[tuple[int, ...]] = [()] * len(labels)
    for k in range(labels.max() + 1):
        members = [int(i) for i in order if labels[i] == k]
        for at, i in enumerate(members):
            rest = [j for there, j in enumerate(members) if there % folds != at % folds]
            found[i] = tuple(sorted(rest))
    return found
