"""FedSA: without its three terms local training; anchors, margins and rounds by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rayfed import methods, tree
from rayfed.methods.fedsa import anchors, apart, distances
from tests import toy


@pytest.mark.skipif("local_only" not in methods.names(), reason="compared with local_only, which is not there")
def test_without_its_terms_it_is_local_training_to_the_bit() -> None:
    method = {"name": "fedsa", "lam": 0.0, "mu": 0.0, "nu": 0.0, "predict": "head"}
    done, alone = (toy.simulate(m, executor="vmap", rounds=3) for m in (method, "local_only"))
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in done.clients().items())


def test_margins_by_hand() -> None:
    """Points 0, 3, 10 on a line: nearest others 3, 3, 7."""
    points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [10.0, 0.0]])
    assert float(apart(points, torch.ones(3))) == pytest.approx(13 / 3)
    assert float(apart(points, torch.tensor([5.0, 0.0, 1.0]))) == pytest.approx(10)
    assert float(apart(points, torch.zeros(3))) == 0
    assert float(apart(points, torch.tensor([0.0, 2.0, 0.0]))) == -math.inf
    slope = torch.func.grad(lambda z: distances(z, points).sum())(points)
    assert bool(torch.isfinite(slope).all()), "a row on an anchor"


def test_anchors_are_drawn_once_and_not_negative() -> None:
    a = anchors(10, 16, 3)
    assert torch.equal(a, anchors(10, 16, 3)) and not torch.equal(a, anchors(10, 16, 4))
    assert float(a.min()) == 0 and 0.3 < float(a.mean()) < 0.5  # of a normal number cut at 0: 0.399


def test_ends_of_the_moving_average() -> None:
    still, fresh = (toy.simulate({"name": "fedsa", "decay": d}, rounds=3, executor="vmap") for d in (1.0, 0.0))
    assert torch.equal(still.state["anchors"], still.initial["anchors"])
    known = fresh.state["known"] > 0
    assert torch.equal(fresh.state["anchors"][known], fresh.state["prototypes"][known])


def test_the_calibration_moves_no_extractor() -> None:
    """nu alone, without a gradient of its own in f: extractors train as if it were not there, in the first step."""
    one = {"local": {"epochs": None, "steps": 1}, "executor": "vmap", "dtype": "float64", "rounds": 1}
    with_nu, without = (
        toy.simulate({"name": "fedsa", "lam": 0, "mu": 1, "nu": nu}, **one).clients() for nu in (5.0, 0.0)
    )
    for c, state in with_nu.items():
        body = [n for n in state["model"] if n.startswith("body.")]
        assert all(torch.equal(state["model"][n], without[c]["model"][n]) for n in body)
        assert not torch.equal(state["model"]["head.bias"], without[c]["model"]["head.bias"])


def test_rounds_by_hand(hand) -> None:
    lam, mu, nu, decay = 0.5, 0.7, 0.3, 0.9
    method = {"name": "fedsa", "lam": lam, "mu": mu, "nu": nu, "decay": decay}
    done = toy.simulate(method, rounds=3, **hand.WORK)
    first, a = done.fed.task.initial, done.initial["anchors"]
    own, protos = {}, {}

    def spread(points):
        if len(points) < 2:
            return -math.inf if len(points) else 0.0
        return torch.cdist(points, points).fill_diagonal_(math.inf).amin(1).mean()

    for draw in done.fed.drawn:
        sent = []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            mine = torch.stack(list(protos[c].values())) if c in protos else torch.zeros(0, 16)
            margin = max(float(spread(a)), float(spread(mine)))

            def loss(p, x=x, y=y, margin=margin, a=a):
                h = hand.features(p, x)
                far = (h[:, None] - a).square().sum(-1).sqrt() + margin * torch.nn.functional.one_hot(y, 4).double()
                contrast = torch.nn.functional.cross_entropy(-far, y)
                calibrated = torch.nn.functional.cross_entropy(hand.classify(p, a), torch.arange(4))
                return hand.loss(p, x, y) + lam * (h - a[y]).square().mean() + mu * contrast + nu * calibrated

            own[c] = hand.descend(own.get(c, first), loss)
            h = hand.features(own[c], x)
            protos[c] = {int(k): h[y == k].mean(0) for k in y.unique()}
            sent.append(protos[c])
        a = a.clone()
        for k in range(4):
            if found := [s[k] for s in sent if k in s]:
                a[k] = decay * a[k] + (1 - decay) * torch.stack(found).mean(0)
    torch.testing.assert_close(done.state["anchors"], a, rtol=0, atol=1e-11)
    for c, state in done.clients().items():
        hand.same(state["model"], own[int(c)], atol=1e-11)
