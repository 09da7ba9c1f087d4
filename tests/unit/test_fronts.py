"""Problems by formula and measures of fronts, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rayfed import fronts


def solutions(kind: int, x1: torch.Tensor) -> torch.Tensor:
    """The front's solutions of F1 to F6: x1, and the tail that makes every term zero."""
    i, n = torch.arange(2, 7, dtype=torch.float64), 6
    first, even = x1[:, None], i % 2 == 0
    angle = 4 * math.pi * first + i * math.pi / n
    if kind == 1:
        tail = (2 * first - 1) ** 2 + 0 * i
    elif kind == 2:
        tail = first ** (0.5 * (1 + 3 * (i - 2) / (n - 2)))
    elif kind == 3:
        tail = (torch.sin(angle) + 1) / 2
    elif kind == 6:
        height = 0.3 * first**2 * torch.cos(12 * math.pi * first + 4 * i * math.pi / n) + 0.6 * first
        turn = 6 * math.pi * first + i * math.pi / n
        tail = (1 + height * torch.where(even, torch.sin(turn), torch.cos(turn))) / 2
    else:
        odd = torch.cos(angle / 3 if kind == 5 else angle)
        tail = (1 + 0.8 * first * torch.where(even, torch.sin(angle), odd)) / 2
    return torch.cat([first, tail], 1)


@pytest.mark.parametrize("kind", range(1, 7))
def test_the_front_of_f1_to_f6(kind: int) -> None:
    x1 = torch.linspace(0.01, 0.99, 30, dtype=torch.float64)
    problem = fronts.PROBLEMS[f"F{kind}"]
    on = problem.objectives(solutions(kind, x1))
    torch.testing.assert_close(on, torch.stack([x1, 1 - x1.sqrt()], 1))
    off = problem.objectives(torch.full((1, 6), 0.3, dtype=torch.float64))
    assert float(off[0, 1]) > 1 - math.sqrt(float(off[0, 0]))


def test_terms_by_hand() -> None:
    """F1 at x = (1/4, 1/2, ...): y_i = 1/2 - 1/4 = 1/4, so that both sums are 1/16. F6: even terms to the fourth power."""
    x = torch.tensor([[0.25, 0.5, 0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    s = 1 + 1 / 16
    want = [s * 0.25, s * (1 - math.sqrt(0.25 / s))]
    assert fronts.PROBLEMS["F1"].objectives(x)[0].tolist() == pytest.approx(want)
    height = [0.3 / 16 * math.cos(3 * math.pi + 4 * i * math.pi / 6) + 0.15 for i in range(2, 7)]
    waves = [(math.sin if i % 2 == 0 else math.cos)(1.5 * math.pi + i * math.pi / 6) for i in range(2, 7)]
    y = [-h * w for h, w in zip(height, waves, strict=True)]
    odd, even = (y[1] ** 2 + y[3] ** 2) / 2, (y[0] ** 4 + y[2] ** 4 + y[4] ** 4) / 3
    want = [(1 + odd) * 0.25, (1 + even) * (1 - math.sqrt(0.25 / (1 + even)))]
    assert fronts.PROBLEMS["F6"].objectives(x)[0].tolist() == pytest.approx(want)
    middle = torch.full((1, 5), 0.5, dtype=torch.float64)  # RE34 at (2, 2, 2, 2, 2)
    f1 = 1640.2823 + 2 * (2.3573285 + 2.3220035 + 4.5688768 + 7.7213633 + 4.4559504)
    assert float(fronts.PROBLEMS["RE34"].objectives(middle)[0, 0]) == pytest.approx(f1)
    ends = torch.zeros(1, 10, dtype=torch.float64)
    ends[0, 0] = 0.25
    assert fronts.PROBLEMS["ZDT1"].objectives(ends)[0].tolist() == [0.25, 0.5]
    assert fronts.PROBLEMS["ZDT2"].objectives(ends)[0].tolist() == [0.25, 1 - 0.0625]


@pytest.mark.parametrize("name", fronts.PROBLEMS)
def test_every_problem_has_finite_objectives_and_gradients(name: str) -> None:
    p = fronts.PROBLEMS[name]
    torch.manual_seed(0)
    x = torch.rand(50, p.n, dtype=torch.float64, requires_grad=True)
    f = p.objectives(x)
    assert f.shape == (50, len(p.nadir)) and bool(torch.isfinite(f).all())
    (slope,) = torch.autograd.grad(f.sum(), x)
    assert bool(torch.isfinite(slope).all())


def test_hypervolume_by_hand() -> None:
    two = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert fronts.hypervolume(two) == pytest.approx(0.21)
    more = np.concatenate([two, [[1.0, 1.0], [1.05, 0.5], [0.0, 1.0], [2.0, -1.0]]])
    assert fronts.hypervolume(more[[3, 1, 0, 2, 4, 5]]) == pytest.approx(0.21)  # dominated, beyond, twice, in any order
    assert fronts.hypervolume(np.array([[2.0, 2.0]])) == 0
    assert fronts.hypervolume(np.zeros((1, 3))) == pytest.approx(1.1**3)
    three = np.array([[0.0, 0.5, 0.1], [0.5, 0.0, 0.6]])
    boxes = 1.1 * 0.6 * 1.0 + 0.6 * 1.1 * 0.5 - 0.6 * 0.6 * 0.5
    assert fronts.hypervolume(three) == pytest.approx(boxes)
    rng = np.random.default_rng(0)
    points, where = rng.random((20, 3)), rng.random((200_000, 3)) * 1.1
    share = (points[:, None] <= where[None]).all(-1).any(0).mean()
    assert fronts.hypervolume(points) == pytest.approx(share * 1.1**3, abs=0.01)
    t = np.linspace(0, 1, 2001)
    assert fronts.hypervolume(np.stack([t, 1 - np.sqrt(t)], 1)) == pytest.approx(1.21 - 1 / 3, abs=1e-3)


def test_range_and_sparsity_of_even_points_on_a_line() -> None:
    for n in (2, 5, 11):
        t = np.linspace(0, 1, n)
        line = np.stack([t, 1 - t], 1)
        assert fronts.sparsity(line) == pytest.approx(2 / (n - 1) ** 2) and fronts.extent(line) == 1
        assert fronts.sparsity(np.concatenate([line, [[1.0, 1.0]]])) == pytest.approx(2 / (n - 1) ** 2)
    assert math.isnan(fronts.sparsity(np.ones((3, 2))))


def test_the_preferences_that_fronts_are_judged_at() -> None:
    two, three = fronts.preferences(2), fronts.preferences(3)
    assert two.shape == (100, 2) and np.allclose(np.linalg.norm(two, axis=1), 1) and two[0].tolist() == [0, 1]
    assert three.shape == (105, 3) and np.allclose(three.sum(1), 1) and len(np.unique(three, axis=0)) == 105
