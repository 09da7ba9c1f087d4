"""Agglomerative clustering of signatures against SciPy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from rayfed.cluster import canonical
from tests.unit.cluster.evidence import labels, of_signatures, unit


@pytest.mark.parametrize("kind", ["average", "complete", "single"])
@pytest.mark.parametrize("stop", [2, 5, 0.6, 1.1])
def test_agglomerative_is_scipys(kind: str, stop: float) -> None:
    """On the condensed matrix of 1 - <s_i, s_j>, cut at a number of clusters or at a distance."""
    for seed in range(5):
        s = unit(14, seed=seed)
        distance = 1 - s @ s.T
        merges = linkage(squareform(distance, checks=False), kind)
        want = fcluster(merges, stop, "maxclust" if isinstance(stop, int) else "distance")
        spec: dict[str, Any] = {"kind": "agglomerative", "linkage": kind}
        if isinstance(stop, float):
            spec["threshold"] = stop
        # with a threshold, the number of clusters is not used
        got = labels(spec, of_signatures(s), int(stop) if isinstance(stop, int) else 1)
        assert got == canonical(want).tolist()


def test_agglomerative_by_hand() -> None:
    """Two bundles of directions; opposite ones are farthest, and lengths of single precision do no harm."""
    angles = np.deg2rad([0, 180, 10, 190, 350])
    s = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert labels({}, of_signatures(s), 2) == [0, 1, 0, 1, 0]
    # the bundles are 1.98 apart on average: 1 + (4 cos 10 + cos 0 + cos 20) / 6
    assert labels({"threshold": 1.97}, of_signatures(s)) == [0, 1, 0, 1, 0]
    assert labels({"threshold": 1.99}, of_signatures(s)) == [0, 0, 0, 0, 0]


def test_a_merge_at_the_threshold_itself_does_not_happen() -> None:
    s = np.eye(3)  # all distances are 1
    assert labels({"threshold": 1.0}, of_signatures(s)) == [0, 1, 2]
    assert labels({"threshold": 1.001}, of_signatures(s)) == [0, 0, 0]


def test_agglomerative_of_few() -> None:
    assert labels({}, of_signatures(np.zeros((0, 4)))) == []
    assert labels({}, of_signatures(unit(1))) == [0]
    assert labels({"threshold": 0.1}, of_signatures(unit(1))) == [0]
    assert labels({}, of_signatures(unit(2)), 3) == [0, 1]
    assert labels({}, of_signatures(unit(4)), 1) == [0, 0, 0, 0]


def test_agglomerative_ignores_the_order_of_clients() -> None:
    s = unit(12, seed=3)
    order = np.random.default_rng(0).permutation(12)
    here = np.array(labels({}, of_signatures(s), 4))
    assert labels({}, of_signatures(s[order]), 4) == canonical(here[order]).tolist()
