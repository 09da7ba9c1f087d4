"""The flag aggregator against singular values of the updates themselves, and its invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed.aggregate.flag import EPS, subspace
from tests.unit.aggregate.updates import PLANE, make, weigh

X = np.random.default_rng(3).normal(size=(7, 20)) + np.ones(20)  # seven updates of twenty numbers
X[5] *= -30


def svd(updates: np.ndarray, r: int, pairs: float, iterations: int) -> np.ndarray:
    """Y (P, r) by iterating on the columns themselves, as the paper says it."""
    x = (updates / np.linalg.norm(updates, axis=1, keepdims=True)).T
    n = x.shape[1]
    unequal = [(i, j) for i in range(n) for j in range(n) if i != j]

    def gap(y: np.ndarray, v: np.ndarray) -> float:
        return abs(1 - ((y.T @ v) ** 2).sum())

    def objective(y: np.ndarray) -> float:
        own = sum(np.sqrt(gap(y, x[:, i])) for i in range(n))
        return own + pairs / (n * (n - 1)) * sum(np.sqrt(gap(y, x[:, i] - x[:, j])) for i, j in unequal)

    best = np.linalg.svd(x)[0][:, :r]
    for _ in range(iterations):
        columns = [x[:, i] * (gap(best, x[:, i]) + EPS) ** -0.25 for i in range(n)]
        if pairs:
            share = pairs / (n * (n - 1))
            columns += [(d := x[:, i] - x[:, j]) * (gap(best, d) + EPS) ** -0.25 * share for i, j in unequal]
        new = np.linalg.svd(np.stack(columns, 1))[0][:, :r]
        if objective(new) >= objective(best):
            break
        best = new
    return best


@pytest.mark.parametrize("pairs", [0.0, 2.0])
@pytest.mark.parametrize("output", ["paper", "code", "clipped"])
def test_inner_products_give_what_singular_vectors_give(output: str, pairs: float) -> None:
    y = svd(X, 3, pairs, 4)
    norms = np.linalg.norm(X, axis=1)
    lengths = {"paper": norms, "code": np.full(7, 7 / 3), "clipped": np.minimum(norms, np.median(norms))}[output]
    wanted = y @ y.T @ (lengths @ (X / norms[:, None])) / 7
    ours = weigh(make("flag", r=3, output=output, pairs=pairs, iterations=4), X) @ X
    assert np.linalg.norm(ours - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_the_projection_is_one() -> None:
    gram = X @ X.T
    unit = gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
    p = subspace(unit, 3, 0.0, 5)
    assert np.allclose(p @ p, p, atol=1e-9) and np.trace(p) == pytest.approx(3)


def test_a_subspace_as_large_as_the_span_gives_the_plain_mean() -> None:
    assert np.allclose(weigh(make("flag", r=7, output="paper"), X) @ X, X.mean(0), rtol=0, atol=1e-9)
    assert np.allclose(weigh(make("flag", r=3, output="paper"), PLANE) @ PLANE, PLANE.mean(0), rtol=0, atol=1e-9)


def test_equal_updates_come_out_as_they_are() -> None:
    same = np.tile([1.0, -2.0, 3.0], (5, 1))
    assert np.allclose(weigh(make("flag", r=1), same) @ same, same[0], atol=1e-9)
    one = np.array([[3.0, 4.0]])
    assert np.allclose(weigh(make("flag", r=1, output="paper"), one) @ one, one[0])
    assert np.allclose(weigh(make("flag", r=1, output="code"), one) @ one, one[0] / 5)


@pytest.mark.parametrize(("output", "scaled"), [("paper", 7.0), ("clipped", 7.0), ("code", 1.0)])
def test_order_and_scale(output: Any, scaled: float) -> None:
    rule, order = make("flag", output=output), np.random.default_rng(0).permutation(7)
    made = weigh(rule, X) @ X
    assert np.allclose(weigh(rule, X[order]) @ X[order], made, rtol=0, atol=1e-8)
    assert np.allclose(weigh(rule, 7 * X) @ (7 * X), scaled * made, rtol=1e-8)


def test_updates_of_zero_are_left_out_of_the_subspace() -> None:
    with_zero = np.concatenate([X, np.zeros((1, 20))])
    assert np.isfinite(weigh(make("flag"), with_zero)).all()
    assert weigh(make("flag"), np.zeros((3, 2))).tolist() == [0, 0, 0]
