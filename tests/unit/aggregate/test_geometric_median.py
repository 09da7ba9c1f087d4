"""Geometric median: the Weiszfeld steps on vectors, and what it has to be."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.aggregate.updates import LINE, PLANE, make, weigh


def test_no_step_is_the_weighted_mean() -> None:
    assert weigh(make("geometric_median", iterations=0), PLANE, [1, 2, 3, 4, 5, 6, 7]) == pytest.approx(
        np.arange(1, 8) / 28
    )


def test_steps_on_vectors() -> None:
    w = np.arange(1, 8) / 28
    v = w @ PLANE
    for _ in range(3):
        b = w / np.maximum(np.linalg.norm(PLANE - v, axis=1), 1e-6)
        v = b @ PLANE / b.sum()
    ours = weigh(make("geometric_median", iterations=3), PLANE, [1, 2, 3, 4, 5, 6, 7]) @ PLANE
    assert np.allclose(ours, v, rtol=0, atol=1e-9)


def test_of_numbers_it_is_the_median() -> None:
    c = weigh(make("geometric_median", iterations=2000), LINE)
    assert float((c @ LINE)[0]) == pytest.approx(3.0, abs=1e-3)  # of seven numbers the fourth


def test_it_minimises_the_sum_of_distances() -> None:
    v = weigh(make("geometric_median", iterations=500), PLANE) @ PLANE

    def cost(x: np.ndarray) -> float:
        return float(np.linalg.norm(PLANE - x, axis=1).sum())

    rng = np.random.default_rng(0)
    assert all(cost(v) <= cost(v + 0.01 * rng.normal(size=3)) for _ in range(50))
