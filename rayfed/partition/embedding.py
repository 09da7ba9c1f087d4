"""Heterogeneity in what a model sees: clusters of embeddings instead of labels, spread over clients with a Dirichlet.

Borazjani et al. 2025 (arXiv 2503.14553): embed every training row, k-means into K clusters of sizes s and ratios r = s / sum(s);
each client draws q_m ~ Dir(alpha r) over the clusters; sizes n solve Q^T n = s in least squares; the client takes
floor(n_m q_mc) rows of cluster c. The prior is alpha r, which sums to alpha: with ten even clusters, alpha = 0.1 is 0.01 per
cluster, far more skewed than `dirichlet` with alpha = 0.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import Owned, embed, top_up, within_groups
from rayfed.partition.dirichlet import hand_out


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row; those left over by rounding and by the least-squares sizes are nobody's.

    `fallback: columns` leaves none over.
    `embedding: task` is the hidden layer of a small network trained centrally on the task, `pca` principal components of the
    inputs, `labels` the class itself (the class-based variant, without k-means). Planted groups transform the rows afterwards.
    """
    p = f.partition
    cluster = clusters(p, dataset, draw)

    def deal(mine: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        _, code, s = np.unique(mine, return_inverse=True, return_counts=True)
        counts = allocate(s, n, p.alpha, p.min_examples, p.tries, rng)
        if counts is not None:
            return hand_out(code, counts, rng)
        if p.fallback == "columns":
            return columns(code, s, n, p.alpha, p.min_examples, rng)
        raise ConfigError(
            f"federation.partition: none of {p.tries} draws gave {n} clients sizes of at least {p.min_examples} examples that fit "
            f"the {len(s)} clusters; allowed: `fallback: columns` (each cluster shared out on its own), more clients than clusters, "
            "a smaller min_examples, or more tries"
        )

    return within_groups(f, dataset, group, draw, deal, p.min_examples, of=cluster)


def clusters(p: Any, dataset: Any, draw: Any) -> np.ndarray:
    """Return the cluster of each training row, (n,) int64."""
    train = dataset.train
    if p.embedding == "labels":
        return np.asarray(train.y)
    if dataset.kind in ("text", "instruct"):
        raise ConfigError(f"federation.partition.embedding: {p.embedding} found, for texts: labels")
    pca = p.embedding == "pca"
    e = embed.pca(train.x) if pca else embed.task(train.x, train.y, dataset.kind, draw("task embedding"))(train.x)
    return embed.clusters(e, p.clusters, draw("k-means"))


def allocate(
    s: np.ndarray, n: int, alpha: float, least: int, tries: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Return (n, K) rows per client and cluster for cluster sizes s (K,), or None if no draw of `tries` was accepted.

    A draw is accepted if every client gets at least `least` rows, also after rounding down, and no cluster is overdrawn.
    """
    at_once = int(np.clip(1_000_000 // (n * len(s)), 1, 100))
    for first in range(0, tries, at_once):
        q = rng.dirichlet(alpha * s / s.sum(), size=(min(at_once, tries - first), n))
        size = np.trunc(np.linalg.pinv(q.transpose(0, 2, 1)) @ s)
        counts = np.floor(size[..., None] * q).astype(np.int64)
        fits = (counts.sum(2).min(1) >= least) & (size.min(1) > 0) & (counts.sum(1) <= s).all(1)
        fits &= (np.einsum("bnk,bn->bk", q, size) <= s * (1 + 1e-9)).all(1)
        if fits.any():
            return np.asarray(counts[fits.argmax()])
    return None


def columns(code: np.ndarray, s: np.ndarray, n: int, alpha: float, least: int, rng: np.random.Generator) -> np.ndarray:
    """Return the client of each row: every cluster shared out in proportion to its column of Q over the clients; then `top_up`."""
    q = rng.dirichlet(alpha * s / s.sum(), size=n)
    total = q.sum(0)
    q = np.where(total > 0, q / np.where(total > 0, total, 1.0), 1.0 / n)  # a cluster that no client wants goes to all
    upto = np.rint(np.cumsum(q, 0) * s)
    upto[-1] = s
    counts = np.diff(upto, axis=0, prepend=0).astype(np.int64)
    return top_up(hand_out(code, counts, rng), n, least, rng)
