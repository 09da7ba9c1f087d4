"""Embeddings of rows."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed.partition import embed
from tests.unit.partition.blobs import BLOBS


def test_the_embedding_of_the_task_separates_what_the_task_separates() -> None:
    """x has a strong direction that says nothing about y: PCA follows it, the trained hidden layer does not."""
    rng = np.random.default_rng(0)
    y, strong = rng.integers(0, 2, 600), rng.choice([-1.0, 1.0], 600)
    x = np.stack([20 * strong, 2.0 * (2 * y - 1), rng.normal(size=600), rng.normal(size=600)], 1).astype(np.float32)

    def agree(a: np.ndarray, b: np.ndarray) -> float:
        return max(np.mean(a == b), np.mean(a != b))

    by_pca = embed.clusters(embed.pca(x), 2, np.random.default_rng(1))
    assert agree(by_pca, strong > 0) > 0.99 and agree(by_pca, y) < 0.6
    e = embed.task(x, y, "tabular", np.random.default_rng(1))(x)
    assert e.shape == (600, embed.HIDDEN)
    live = e.std(0) > 0
    assert e[:, live].std(0) == pytest.approx(np.ones(live.sum())) and e.mean(0) == pytest.approx(
        np.zeros(64), abs=1e-9
    )
    for space, by_label in ((e, True), (embed.pca(x), False)):
        label, other = (np.linalg.norm(space[a].mean(0) - space[~a].mean(0)) for a in (y > 0, strong > 0))
        assert label > 1.1 * other if by_label else label < 0.3 * other


def test_embedding_by_chunks_equals_embedding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = embed.task(BLOBS.train.x, BLOBS.train.y, "tabular", np.random.default_rng(0))
    at_once = fitted(BLOBS.train.x)
    monkeypatch.setattr(embed, "FIT", 37)
    assert fitted(BLOBS.train.x) == pytest.approx(at_once, abs=1e-12)
