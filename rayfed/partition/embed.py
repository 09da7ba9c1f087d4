"""Embeddings of rows without torch, for partitions and for describing them; one thread, so that the bits do not depend on
how many there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from rayfed.errors import ConfigError

Embed = Callable[[np.ndarray], np.ndarray]  # rows (n, ...) to embeddings (n, e)

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


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(np.float64)


def _by_chunks(apply: Embed, x: np.ndarray) -> np.ndarray:
    with _quiet():
        return np.concatenate([apply(x[first : first + FIT]) for first in range(0, max(len(x), 1), FIT)])


def pca(x: np.ndarray, components: int = COMPONENTS) -> np.ndarray:
    """Return (n, e) principal components of the flattened inputs x (n, ...), e at most `components`; columns in order of variance."""
    from sklearn.decomposition import PCA

    flat = _flat(x[_some(len(x))])
    with _quiet():
        fitted = PCA(min(components, *flat.shape[::-1]), random_state=0).fit(flat)
    return _by_chunks(lambda rows: np.asarray(fitted.transform(_flat(rows))), x)


def task(x: np.ndarray, y: np.ndarray, kind: str, rng: np.random.Generator) -> Embed:
    """Return x (n, ...) -> (n, 64) hidden units of scikit-learn's MLPClassifier trained on (x, y), each standardised.

    Inputs are centred and divided by the deviation of each column (kind tabular) or of all pixels (kind image). ConfigError
    for rows of one class.
    """
    from sklearn.neural_network import MLPClassifier

    if len(np.unique(y)) < 2:
        raise ConfigError("federation.partition.embedding: task needs rows of at least two classes; allowed: pca")
    rows = _some(len(x))
    flat = _flat(x[rows])
    mean, scale = flat.mean(0), _positive(flat.std(0) if kind == "tabular" else np.full(flat.shape[1], flat.std()))
    with _quiet():
        net = MLPClassifier((HIDDEN,), max_iter=30, random_state=int(rng.integers(2**31)))
        net.fit((flat - mean) / scale, y[rows])

    def hidden(x: np.ndarray) -> np.ndarray:
        return np.maximum((_flat(x) - mean) / scale @ net.coefs_[0] + net.intercepts_[0], 0.0)

    fitted = _by_chunks(hidden, x[rows])
    centre, spread = fitted.mean(0), _positive(fitted.std(0))
    return lambda x: (_by_chunks(hidden, x) - centre) / spread


def _positive(deviation: np.ndarray) -> np.ndarray:
    return np.where(deviation > 0, deviation, 1.0)


def clusters(e: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return the k-means++ cluster of each row, (n,) 0..k-1. ConfigError for more clusters than distinct rows."""
    from sklearn.cluster import KMeans

    if k > len(e):
        raise ConfigError(f"federation.partition.clusters: {k} found, allowed: at most the {len(e)} training rows")
    with _quiet():
        fitted = KMeans(k, n_init=4, random_state=int(rng.integers(2**31))).fit(e[_some(len(e))])
        return np.asarray(fitted.predict(e), np.int64)
