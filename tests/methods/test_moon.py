"""MOON: without the contrast FedAvg; where it cannot tell two models apart, log 2; and rounds by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rayfed import methods, tree
from rayfed.methods.moon import contrast
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_the_contrast_it_is_fedavg_to_the_bit(executor: str) -> None:
    done, plain = (toy.simulate(m, executor=executor) for m in ({"name": "moon", "mu": 0.0}, "fedavg"))
    assert tree.same(done.state, plain.state)


def test_equal_models_give_log_2_and_no_gradient() -> None:
    z, other = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(contrast(z, other, other, 0.5), torch.full((5,), math.log(2), dtype=torch.float64))
    slope = torch.func.grad(lambda z: contrast(z, other, other, 0.5).sum())(z)
    assert float(slope.abs().max()) < 1e-15


def test_by_hand() -> None:
    """cos 1 to the global model's features, 0 to the last ones, T = 0.5: -log(e^2 / (e^2 + 1)) = 0.126928; no NaN at features of 0."""
    z, near, far = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert float(contrast(z, near, far, 0.5)) == pytest.approx(0.126928, abs=1e-6)
    slope = torch.func.grad(lambda z: contrast(z, near, far, 0.5).sum())(torch.zeros(1, 2))
    assert bool(torch.isfinite(slope).all())


@needs_fedavg
def test_the_first_round_is_fedavgs() -> None:
    """The last local model is the initial one, as is the global one."""
    done, plain = (
        toy.simulate(m, rounds=1, executor="vmap", dtype="float64") for m in ({"name": "moon", "mu": 5.0}, "fedavg")
    )
    torch.testing.assert_close(dict(done.state["model"]), dict(plain.state["model"]), rtol=0, atol=1e-13)


def test_rounds_by_hand(hand) -> None:
    mu, t = 2.0, 0.7
    done = toy.simulate({"name": "moon", "mu": mu, "temperature": t}, rounds=3, **hand.WORK)
    model = {n: p.clone() for n, p in done.initial["model"].items()}
    first, last = model, {}
    for draw in done.fed.drawn:
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            there, before = (hand.features(p, x) for p in (model, last.get(c, first)))

            def loss(p, x=x, y=y, there=there, before=before):
                z = hand.features(p, x)
                a, b = (torch.exp(F.cosine_similarity(z, h) / t) for h in (there, before))
                return hand.loss(p, x, y) - mu * torch.log(a / (a + b)).mean()

            last[c] = hand.descend(model, loss)
            updates.append({k: last[c][k] - model[k] for k in model})
            n.append(len(y))
        model = {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    hand.same(done.state["model"], model, atol=1e-10)
    for c, state in done.clients().items():
        hand.same(state["previous"], last[int(c)], atol=1e-10)
