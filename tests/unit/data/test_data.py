"""Sources by name, and what all of them give."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed.data import Part, stratified
from tests.unit.data.sets import check, refused


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digit", "did you mean 'digits'?"),
        ("digits:all", "'digits:all' is unknown"),
        ("syntetic:blobs", "did you mean 'synthetic:blobs'?"),
        ("synthetic:blob", "did you mean 'synthetic:blobs'?"),
        ("synthetic", "not complete; known: synthetic:blobs, synthetic:images, synthetic:logistic"),
        ("parquet:", "not complete; known: parquet:DIR"),
        ("hf", "not complete; known: hf:NAME_OR_PATH"),
    ],
)
def test_unknown_and_incomplete_names_are_answered_with_the_known_ones(name: str, says: str) -> None:
    (problem,) = check(name)
    assert problem.startswith("task.data: ") and says in problem
    assert refused(name) == problem


def test_stratified_takes_the_same_share_of_every_class_and_never_all_of_one() -> None:
    y = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    mask = stratified(y, 0.2, np.random.default_rng(0))
    assert np.bincount(y[mask], minlength=4).tolist() == [20, 2, 1, 0]
    assert np.bincount(y[stratified(y, 0.99, np.random.default_rng(0))]).tolist() == [99, 9, 1]


def test_take_keeps_all_columns_of_a_part_together() -> None:
    p = Part(np.arange(6.0).reshape(3, 2), np.array([5, 6, 7]), np.array(["a", "b", "c"]), None, np.array(["x"] * 3))
    q = p.take(np.array([2, 0]))
    assert (q.x.tolist(), q.y.tolist(), q.client.tolist()) == ([[4, 5], [0, 1]], [7, 5], ["c", "a"])
    assert q.domain is None and q.split.tolist() == ["x", "x"]
