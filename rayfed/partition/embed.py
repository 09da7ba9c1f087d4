"""Embeddings of rows without torch, for partitions and for describing them; one thread, so that the bits do not depend on
how many there are."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from rayfed.errors import ConfigError

COMPONENTS = 32
HIDDEN = 64
FIT = 10_000  # rows that an embedding is fitted on; all rows are embedded


@contextmanager
def _quiet() -> Iterator[None]:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _some(n: int) -> np.ndarray:
    return np.arange(n) if n <= FIT else np.random.default_rng(0).choice(n, FIT, replace=False)


def pca(x: np.ndarray, components: int = COMPONENTS) -> np.ndarray:
    """(n, e) principal components of the flattened inputs x (n, ...), e at most `components`; columns in order of variance."""
    from sklearn.decomposition import PCA

    flat = x.reshape(len(x), -1).astype(np.float64)
    rows = _some(len(x))
    with _quiet():
        fitted = PCA(min(components, flat.shape[1], len(rows)), random_state=0).fit(flat[rows])
        return np.asarray(fitted.transform(flat))


def task(x: np.ndarray, y: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """(n, 64) hidden units of scikit-learn's MLPClassifier trained on (x, y), each standardised.

    Inputs (n, ...) are centred and divided by the deviation of each column (kind tabular) or of all pixels (kind image).
    """
    from sklearn.neural_network import MLPClassifier

    if len(np.unique(y)) < 2:
        raise ConfigError("federation.partition.embedding: task needs rows of at least two classes; allowed: pca")
    flat = x.reshape(len(x), -1).astype(np.float64)
    deviation = flat.std(0) if kind == "tabular" else np.full(flat.shape[1], flat.std())
    flat = (flat - flat.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    rows = _some(len(x))
    with _quiet():
        net = MLPClassifier((HIDDEN,), max_iter=30, random_state=int(rng.integers(2**31))).fit(flat[rows], y[rows])
        hidden = np.maximum(flat @ net.coefs_[0] + net.intercepts_[0], 0.0)
    deviation = hidden.std(0)
    return np.asarray((hidden - hidden.mean(0)) / np.where(deviation > 0, deviation, 1.0))


def clusters(e: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k-means++ cluster of each row, (n,) 0..k-1. ConfigError for more clusters than distinct rows."""
    from sklearn.cluster import KMeans

    if k > len(e):
        raise ConfigError(f"federation.partition.clusters: {k} found, allowed: at most the {len(e)} training rows")
    with _quiet():
        fitted = KMeans(k, n_init=4, random_state=int(rng.integers(2**31))).fit(e[_some(len(e))])
        return np.asarray(fitted.predict(e), np.int64)
