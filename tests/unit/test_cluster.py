"""Clusterers against SciPy, numbering of clusters and persistent ids by hand and by brute force."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from rayfed import cluster
from rayfed.cluster import MISSING, Evidence, canonical, match


def untouched() -> Any:
    raise AssertionError("asked for evidence that costs an exchange")


def evidence(signatures: Any, planted: Any = untouched, losses: Any = untouched, known: Any = ()) -> Evidence:
    s = torch.as_tensor(np.asarray(signatures))
    return Evidence(list(range(len(s))), s, torch.ones(len(s), 2), planted, losses, known)


def unit(n: int, q: int = 6, seed: int = 0) -> np.ndarray:
    s = np.random.default_rng(seed).normal(size=(n, q))
    return s / np.linalg.norm(s, axis=1, keepdims=True)


def labels(spec: Any, e: Evidence, clusters: int = 3) -> list[int]:
    return canonical(cluster.make(spec).labels(e, clusters)).tolist()


# -- kinds -------------------------------------------------------------------------------------------------------------


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
        got = labels(spec, evidence(s), int(stop) if isinstance(stop, int) else 1)
        assert got == canonical(want).tolist()


def test_agglomerative_by_hand() -> None:
    """Two bundles of directions; opposite ones are farthest, and lengths of single precision do no harm."""
    angles = np.deg2rad([0, 180, 10, 190, 350])
    s = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert labels({}, evidence(s), 2) == [0, 1, 0, 1, 0]
    # the bundles are 1.98 apart on average: 1 + (4 cos 10 + cos 0 + cos 20) / 6
    assert labels({"threshold": 1.97}, evidence(s)) == [0, 1, 0, 1, 0]
    assert labels({"threshold": 1.99}, evidence(s)) == [0, 0, 0, 0, 0]


def test_a_merge_at_the_threshold_itself_does_not_happen() -> None:
    s = np.eye(3)  # all distances are 1
    assert labels({"threshold": 1.0}, evidence(s)) == [0, 1, 2]
    assert labels({"threshold": 1.001}, evidence(s)) == [0, 0, 0]


def test_agglomerative_of_few() -> None:
    assert labels({}, evidence(np.zeros((0, 4)))) == []
    assert labels({}, evidence(unit(1))) == [0]
    assert labels({"threshold": 0.1}, evidence(unit(1))) == [0]
    assert labels({}, evidence(unit(2)), 3) == [0, 1]
    assert labels({}, evidence(unit(4)), 1) == [0, 0, 0, 0]


def test_agglomerative_ignores_the_order_of_clients() -> None:
    s = unit(12, seed=3)
    order = np.random.default_rng(0).permutation(12)
    here = np.array(labels({}, evidence(s), 4))
    assert labels({}, evidence(s[order]), 4) == canonical(here[order]).tolist()


def test_singletons_and_oracle() -> None:
    assert labels({"kind": "singletons"}, evidence(unit(4)), 1) == [0, 1, 2, 3]
    planted = torch.tensor([2, 0, 2, 1])
    assert labels({"kind": "oracle"}, evidence(unit(4), lambda ids: planted[ids]), 1) == [0, 1, 0, 2]


def test_least_loss_takes_the_least() -> None:
    losses = torch.tensor([[0.3, 0.2, 0.9], [0.1, 0.2, 0.3], [0.5, 0.5, 0.4], [1.0, 0.7, 0.8]])
    replies = dict(enumerate(losses))
    e, kind = evidence(unit(4), losses=lambda: replies, known=[4, 5, 9]), cluster.make({"kind": "least_loss"})
    assert kind.labels(e, 3).tolist() == [1, 0, 2, 1]
    assert kind.ids(e, 3) == {0: 4, 1: 5, 2: 9} and kind.ids(e, 4) is None
    del replies[0], replies[2]
    assert kind.labels(e, 3).tolist() == [MISSING, 0, MISSING, 1]


def test_a_planted_group_keeps_the_id_of_its_members_present_or_not() -> None:
    groups = torch.tensor([2, 0, 2, 1, 0])
    e = Evidence(
        [0, 1],
        torch.zeros(2, 1),
        torch.ones(2, 2),
        lambda ids: groups[list(ids)],
        untouched,
        [3, 7],
        [-1, -1, 7, -1, 3],
    )
    assert cluster.make({"kind": "oracle"}).ids(e, 1) == {2: 7, 0: 3}


@pytest.mark.parametrize("known", [None, 2])
def test_least_loss_clusters_signatures_while_experts_are_missing(known: int | None) -> None:
    e = evidence(unit(8), known=range(known or 0))  # losses are not even asked for
    assert labels({"kind": "least_loss", "linkage": "single"}, e, 3) == labels({"linkage": "single"}, e, 3)


def test_unknown_kinds_and_settings_are_named() -> None:
    assert set(cluster.names()) >= {"agglomerative", "least_loss", "oracle", "singletons"}
    with pytest.raises(ValueError, match=r"'oracl' is unknown.*oracle"):
        cluster.make({"kind": "oracl"})
    with pytest.raises(ValidationError, match="linkage"):
        cluster.make({"kind": "agglomerative", "linkage": "median"})
    with pytest.raises(ValidationError, match="clusters"):
        cluster.make({"kind": "oracle", "clusters": 3})


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_canonical_numbers_by_first_member() -> None:
    assert canonical(np.array([5, 5, 2, 9, 2, 5])).tolist() == [0, 0, 1, 2, 1, 0]
    assert canonical(np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert canonical(np.array([-1, 3, -1])).tolist() == [0, 1, 0]
    assert canonical(np.array([], np.int64)).tolist() == []


def test_canonical_forgets_names() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        found = rng.integers(0, 5, 12)
        renamed = rng.permutation(100)[found]
        assert canonical(found).tolist() == canonical(renamed).tolist()
        assert canonical(canonical(found)).tolist() == canonical(found).tolist()


def test_match_is_the_best_total_not_the_nearest_first() -> None:
    """Nearest first would give 4 (0.9) and be left with 0.1; together 0.8 + 0.85 is more."""
    assert match(np.array([[0.9, 0.8], [0.85, 0.1]]), [4, 7], 8) == [7, 4]


def test_match_gives_fresh_ids_to_what_is_left() -> None:
    assert match(np.array([[0.1], [0.9], [0.2]]), [3], 4) == [4, 3, 5]
    assert match(np.zeros((2, 0)), [], 0) == [0, 1]
    assert match(np.array([[0.5, 0.9, 0.1]]), [2, 5, 6], 7) == [5]  # fewer new than known: the others wait
    assert match(np.zeros((0, 2)), [0, 1], 2) == []


def test_match_refuses_pairs() -> None:
    """Where the second known cluster is refused to both, the first goes to the one that is most like it."""
    s = np.array([[0.9, -0.1], [0.8, -1.0]])
    assert match(s, [4, 7], 8) == [7, 4]
    assert match(s, [4, 7], 8, np.array([[False, True], [False, True]])) == [4, 8]
    assert match(s, [4, 7], 8, np.zeros((2, 2), bool)) == [7, 4]
    assert match(s, [4, 7], 8, np.ones((2, 2), bool)) == [8, 9]


def test_match_of_ties_is_in_order() -> None:
    assert match(np.ones((3, 3)), [2, 4, 9], 10) == [2, 4, 9]
    assert match(np.ones((3, 2)), [2, 4], 5) == match(np.ones((3, 2)), [2, 4], 5)
    assert sorted(match(np.ones((3, 2)), [2, 4], 5)) == [2, 4, 5]


def test_match_against_all_permutations() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        s = rng.random((4, 4))
        best = max(permutations(range(4)), key=lambda p: sum(s[i, j] for i, j in enumerate(p)))
        assert match(s, [10, 11, 12, 13], 14) == [10 + j for j in best]
