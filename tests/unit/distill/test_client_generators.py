"""Draws from clients' generators by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rayfed import tree
from rayfed.distill import client_generators, statistics
from tests.unit.distill.draws import rng


def constant(logit: float, noise: int = 3, classes: int = 2, size: int = 4) -> tree.Tree:
    """A generator of one layer that makes sigmoid(logit) of anything."""
    w = torch.zeros(size, noise + classes, dtype=torch.float64)
    return {"0": {"w": w, "b": torch.full((size,), logit, dtype=torch.float64)}}


def told(*clients: tuple[float, list[int]]) -> client_generators.Generators:
    found = {str(i): {"generator": constant(b), "rows": torch.tensor(r)} for i, (b, r) in enumerate(clients)}
    return client_generators.generators(found, 3, (2, 2))


def test_a_class_is_drawn_of_those_who_hold_it() -> None:
    of = told((math.log(3), [3, 0]), (-math.log(3), [0, 1]))
    assert of.counts.tolist() == [3, 1] and of.held.tolist() == [[3, 0], [0, 1]]
    x = of.draw(torch.tensor([0, 1, 0]), rng())
    assert x.tolist() == [pytest.approx([0.75] * 4), pytest.approx([0.25] * 4), pytest.approx([0.75] * 4)]
    assert torch.equal(x, of.draw(torch.tensor([0, 1, 0]), rng()))


def test_clients_are_drawn_by_their_rows() -> None:
    of = told((math.log(3), [3, 0]), (-math.log(3), [1, 9]))
    x = of.draw(torch.zeros(4000, dtype=torch.int64), rng())[:, 0]
    assert float((x > 0.5).double().mean()) == pytest.approx(0.75, abs=0.02)


def test_twice_the_same_generator_is_twice_its_weight_only() -> None:
    """Two clients with one generator draw as one client does, but for the noise."""
    one, two = told((0.3, [2, 2])), told((0.3, [1, 1]), (0.3, [1, 1]))
    y = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(one.draw(y, rng()), two.draw(y, rng(1)))
    assert one.counts.tolist() == two.counts.tolist()


def test_features_off_their_classes_moments_by_hand() -> None:
    """One class with mean 1 and variance 4, drawn 0 and 4: the residuals' mean is 1, their mean square 5; v = 4.04."""
    of = statistics.Gaussians(torch.tensor([7.0]), torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    found = statistics.mismatch(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 0]), of)
    assert float(found) == pytest.approx(1 / 4.04 + (0.96 / 4.04) ** 2, rel=1e-6)


def test_features_with_the_classes_moments_are_not_off() -> None:
    """Each class at mean +- deviation: nothing is off but the floor of v; a class that nobody holds does not count."""
    means, spread = torch.tensor([[0.0, 3.0], [5.0, 1.0], [9.0, 9.0]]), torch.ones(3, 2)
    of = statistics.Gaussians(torch.tensor([4.0, 4.0, 0.0]), means, spread)
    y = torch.tensor([0, 0, 1, 1, 2])
    z = means[y] + torch.tensor([1.0, -1.0, 1.0, -1.0, 70.0])[:, None]
    assert float(statistics.mismatch(z, y, of)) == pytest.approx((0.01 / 1.01) ** 2, rel=1e-4)
    swapped = means[torch.tensor([1, 1, 0, 0, 2])] + torch.tensor([1.0, -1.0, 1.0, -1.0, 70.0])[:, None]
    assert float(statistics.mismatch(swapped, y, of)) > 10
