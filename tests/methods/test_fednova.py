"""FedNova: equal steps are FedAvg, the norms against weights summed step by step, two rounds with unequal steps in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods.fednova import norm_of
from tests import toy


def weights(tau: int, rho: float, mu: float, lr: float) -> np.ndarray:
    """a: with which weight each of tau gradients g enters (x^r - y) / lr, for steps taken on gradients of unit vectors."""
    y, v, grads = np.zeros(tau), np.zeros(tau), np.eye(tau)
    for g in grads:
        v = rho * v + g + mu * y
        y = y - lr * v
    return -y / lr


@pytest.mark.parametrize(("rho", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.0), (0.0, 0.3)])
def test_norms_are_sums_of_the_gradients_weights(rho: float, mu: float) -> None:
    for tau in (1, 2, 7):
        found = norm_of(torch.tensor(float(tau), dtype=torch.float64), rho, mu, 0.1)
        assert float(found) == pytest.approx(weights(tau, rho, mu, 0.1).sum(), rel=1e-12)


def test_equal_steps_are_fedavg(plain: Any) -> None:
    a, b = (toy.simulate(m, rounds=3, **plain.WORK) for m in ("fednova", "fedavg"))
    np.testing.assert_allclose(*(plain.vector(d.state["model"]) for d in (a, b)), atol=1e-13)


def test_server_momentum_counts_steps_at_the_rate_of_the_day(quadratics: Any) -> None:
    """The published code, step by step, at a rate that halves each round: m <- beta m + step / eta_r; x <- x + eta_r m."""
    halved = {"local": {"schedule": {"kind": "exponential", "gamma": 0.5}}}
    done = toy.simulate({"name": "fednova", "server_momentum": 0.9}, rounds=4, **toy.merge(quadratics(20, 5), halved))
    x, m, p = 0.0, 0.0, np.array([0.8, 0.2])
    for r in range(4):
        eta, directions = 0.02 * 0.5**r, []
        for (curve, at), tau in zip(((10.0, 1.0), (1.0, -1.0)), (20, 5)):
            y = x
            for _ in range(tau):
                y -= eta * curve * (y - at)
            directions.append((x - y) / eta / tau)
        m = 0.9 * m - (p @ np.array([20, 5])) * (p @ np.array(directions))
        x += eta * m
    assert float(done.state["model"]["head.weight"]) == pytest.approx(x, abs=1e-12)
    # the state is in units of the last round's rate, so that a round without replies only converts it
    assert float(done.state["v"]["head.weight"]) == pytest.approx(eta * m, abs=1e-12)
    fed = done.fed
    fed.sample = lambda *a, **k: ()  # type: ignore[method-assign]
    fed.begin(5)
    empty = fed.method.round(done.state, fed, fed.task)
    assert tree.same(empty["model"], done.state["model"])
    assert float(empty["v"]["head.weight"]) == pytest.approx(eta * m / 2, abs=1e-12)


def test_momentum_and_a_falling_rate_keep_equal_steps_equal(quadratics: Any) -> None:
    """|a_i| of local momentum is of the round's one rate: with equal steps FedNova is FedAvg under any schedule."""
    work = {"local": {"optimizer": {"momentum": 0.9}, "schedule": {"kind": "cosine"}}}
    a, b = (toy.simulate(m, rounds=4, **toy.merge(quadratics(7, 7), work)) for m in ("fednova", "fedavg"))
    assert float(a.state["model"]["head.weight"]) == pytest.approx(float(b.state["model"]["head.weight"]), abs=1e-13)


@pytest.mark.parametrize("mu", [0.0, 0.4])
def test_two_rounds_in_numpy(quadratics: Any, mu: float) -> None:
    """The parabolas worked by hand with 20 and 5 steps: x moves by tau_eff times the mean of u_i / |a_i|, by momentum at the server."""
    changes = quadratics(20, 5)
    done = toy.simulate({"name": "fednova", "mu": mu, "server_momentum": 0.5}, rounds=2, **changes)
    x, v, p = 0.0, 0.0, np.array([0.8, 0.2])
    for _ in range(2):
        units, norms = [], []
        for (curve, at), tau in zip(((10.0, 1.0), (1.0, -1.0)), (20, 5)):
            y = x
            for _ in range(tau):
                y = y - 0.02 * (curve * (y - at) + mu * (y - x))
            norms.append(weights(tau, 0.0, mu, 0.02).sum())
            units.append((y - x) / norms[-1])
        effective = p @ (np.array([20.0, 5.0]) if mu else np.array(norms))
        v = effective * (p @ np.array(units)) + 0.5 * v
        x = x + v
    assert float(done.state["model"]["head.weight"]) == pytest.approx(x, abs=1e-13)
