"""FZooS: averaged coefficients are averaged gradients, one client has no correction, gradients against differences, queries are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.errors import ConfigError
from rayfed.methods._bases import gaussian_process as gp
from rayfed.methods._bases.zeroth_order import flat, macro_f1
from rayfed.methods.fzoos import FZooS, fitted, surrogate_gradient
from tests import toy
from tests.unit.task.test_oracle import QUADRATICS

SMALL = {"name": "fzoos", "features": 40, "history": 30, "active": 3, "probes": 10}
STEPS = {"local": {"epochs": None, "steps": 3, "optimizer": {"name": "adam", "lr": 0.05}}}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def numerical(f: Any, z: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    unit = torch.eye(len(z), dtype=z.dtype)
    return torch.stack([(f(z + h * e) - f(z - h * e)) / (2 * h) for e in unit])


def test_the_averaged_surrogates_gradient_is_the_average_of_gradients() -> None:
    omega, b, z = draw(0, 50, 4), draw(1, 50), draw(2, 4)
    nus, w = draw(3, 5, 50), torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1]).double()
    each = torch.stack([surrogate_gradient(nu, omega, b, z) for nu in nus])
    assert torch.allclose(surrogate_gradient(w @ nus, omega, b, z), w @ each, atol=1e-8)
    assert torch.allclose(
        surrogate_gradient(nus[0], omega, b, z),
        numerical(lambda p: (2 / 50) ** 0.5 * (nus[0] * torch.cos(omega @ p + b)).sum(), z),
        atol=1e-5,
    )


def posterior(points: torch.Tensor, values: torch.Tensor, z: torch.Tensor, scale: float) -> torch.Tensor:
    """The posterior mean by its formula, of known points alone."""
    low, span = values.min(), values.max() - values.min()
    k = gp.matern(torch.cdist(points, points), scale) + gp.NOISE * torch.eye(len(points), dtype=points.dtype)
    weights = torch.linalg.solve(k, (values - low) / span)
    return low + span * (gp.matern((points - z).norm(dim=1), scale) @ weights)


def test_the_processs_gradient_is_that_of_its_mean() -> None:
    points, z = draw(0, 12, 3), draw(1, 3)
    values = (points**2).sum(1)
    padded, known = torch.cat([torch.full((5, 3), 7.0).double(), points]), torch.arange(17) >= 5
    got = gp.mean_gradient(padded, torch.cat([torch.full((5,), -9.0).double(), values]), known, z, (2.0,))
    assert torch.allclose(got, numerical(lambda p: posterior(points, values, p, 2.0), z), atol=1e-4)
    near = gp.mean_gradient(padded, torch.cat([torch.zeros(5).double(), values]), known, points[3], (1e-9, 3.0))
    assert torch.allclose(near, 2 * points[3], atol=1.5)  # the likelier of two scales


def test_one_value_has_no_gradient() -> None:
    points = draw(0, 6, 3)
    for known in (torch.ones(6, dtype=torch.bool), torch.arange(6) > 4, torch.zeros(6, dtype=torch.bool)):
        got = gp.mean_gradient(points, torch.full((6,), 2.5).double(), known, points[0] + 0.1, (1.0,))
        assert got.tolist() == [0.0] * 3


def test_uncertainty_is_the_derivatives_variance() -> None:
    points, z, s = draw(0, 4, 2), draw(1, 1, 2), 1.3
    known = torch.tensor([True, True, False, True])
    there = points[known]
    k = torch.exp(-(torch.cdist(there, there) ** 2) / (2 * s**2)) + gp.NOISE * torch.eye(3).double()
    cross = torch.func.jacrev(lambda p: torch.exp(-((there - p) ** 2).sum(1) / (2 * s**2)))(z[0])
    want = 2 / s**2 - torch.trace(cross.T @ torch.linalg.solve(k, cross))
    assert float(gp.uncertainty(points, known, z, s)) == pytest.approx(float(want))
    far = gp.uncertainty(points, known, torch.cat([there[:1], there[:1] + 50]), s)
    assert far[0] < far[1] == pytest.approx(2 / s**2)


def test_ridge_regression_gives_back_what_it_was_fitted_to() -> None:
    omega, b = draw(0, 200, 3), draw(1, 200)
    asked = {"points": draw(2, 20, 3), "known": torch.arange(20) >= 4}
    asked["values"] = torch.where(asked["known"], asked["points"].sum(1), 99.0)
    nu = fitted(asked, omega, b)
    phi = (2 / 200) ** 0.5 * torch.cos(asked["points"][4:] @ omega.T + b)
    assert torch.allclose(phi @ nu, asked["values"][4:] - asked["values"][4:].min(), atol=1e-3)


def test_one_client_is_corrected_by_nothing() -> None:
    one = toy.merge(QUADRATICS, {"task": {"data": {"clients": 1}}, "federation": {"clients": 1}})
    a, b = (toy.simulate({**SMALL, "gamma": g}, rounds=3, **toy.merge(one, STEPS)) for g in (1.0, 0.0))
    assert tree.same(a.state["model"], b.state["model"])
    several = [
        toy.simulate({**SMALL, "gamma": g}, rounds=3, **toy.merge(QUADRATICS, STEPS)).state["model"] for g in (1.0, 0.0)
    ]
    assert not tree.same(*several)


def test_queries_are_values_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    real = FZooS.values

    def counting(self: Any, task: Any, batch: Any) -> Any:
        ask = real(self, task, batch)

        def counted(points: Any) -> Any:
            nonlocal asked
            asked += len(points)
            return ask(points)

        return counted

    monkeypatch.setattr(FZooS, "values", counting)
    done = toy.simulate({**SMALL, "around": 2}, rounds=2, executor="debug", **toy.merge(QUADRATICS, STEPS))
    each = 2 + 3 + 3 * 2 + 1 + 10
    assert asked == 2 * 5 * each and float(done.state["queries"]) == 2 * each == done.rows[-1]["queries/total"]
    assert done.rows[0]["queries/mean"] == each


def test_it_finds_the_best_point() -> None:
    done = toy.simulate(SMALL, rounds=15, **toy.merge(QUADRATICS, STEPS))
    assert float(flat(done.state["model"]).norm()) < 0.5 < 2.0 == float(flat(done.initial["model"]).norm())


def test_f1_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [9.0, 0.0]])
    y, w = torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert float(macro_f1(scores, y, w)) == pytest.approx((2 / 3 + 2 / 3) / 2)


@pytest.mark.parametrize("name", [n for n in ("fzoos", "fedzo") if n in methods.names()])
def test_what_is_wrong_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match="takes no gradients"):
        toy.config(name, local={"clip": 1.0})
    with pytest.raises(ConfigError, match="take no gradients"):
        toy.config(name, local={"privacy": {"norm": 1.0, "noise_multiplier": 1.0}})
