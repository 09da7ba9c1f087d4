"""The registry of clusterers; numbering of clusters and persistent ids by hand and by brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rayfed import cluster
from rayfed.cluster import Evidence, canonical, match
from tests.unit.cluster.evidence import labels, untouched


def test_unknown_kinds_and_settings_are_named() -> None:
    assert set(cluster.names()) >= {"agglomerative", "least_loss", "oracle", "singletons"}
    with pytest.raises(ValueError, match=r"'oracl' is unknown.*oracle"):
        cluster.make({"kind": "oracl"})
    with pytest.raises(ValidationError, match="linkage"):
        cluster.make({"kind": "agglomerative", "linkage": "median"})
    with pytest.raises(ValidationError, match="clusters"):
        cluster.make({"kind": "oracle", "clusters": 3})


def test_unknown_settings_are_refused() -> None:
    for spec in (
        {"kind": "subspace", "measure": "mean"},
        {"kind": "bipartition", "eps_1": 0},
        {"kind": "kmeans", "k": 3},
    ):
        with pytest.raises(ValidationError):
            cluster.make(spec)


def test_a_method_without_the_evidence_says_so() -> None:
    bare = Evidence([0, 1], torch.eye(2), torch.ones(2, 2), untouched, untouched)
    for kind, what in (("kmeans", "updates"), ("bipartition", "updates"), ("subspace", "bases")):
        with pytest.raises(TypeError, match=what):
            labels({"kind": kind}, bare)


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
