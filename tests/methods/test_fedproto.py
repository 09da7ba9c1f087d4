"""FedProto: without the pull local training; prototypes, pull and predictions by hand; bytes of prototypes alone."""

from __future__ import annotations

import pytest
import torch

from rayfed import methods, tree
from rayfed.methods._bases import prototypes
from tests import toy

needs_local = pytest.mark.skipif("local_only" not in methods.names(), reason="compared with local_only")


@needs_local
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_the_pull_it_is_local_training_to_the_bit(executor: str) -> None:
    method = {"name": "fedproto", "lam": 0.0, "predict": "head"}
    done, alone = (toy.simulate(m, executor=executor, rounds=3) for m in (method, "local_only"))
    assert done.clients().keys() == alone.clients().keys()
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in done.clients().items())
    assert done.scores()[0]["loss/personal"] == alone.scores()[0]["loss/personal"]


def class_means(hand, p, x, y):
    h = hand.features(p, x)
    return {int(c): h[y == c].mean(0) for c in y.unique()}


@pytest.mark.parametrize("weight", ["one", "examples"])
def test_rounds_and_predictions_by_hand(hand, weight: str) -> None:
    lam = 3.0
    done = toy.simulate({"name": "fedproto", "lam": lam, "weight": weight}, rounds=3, **hand.WORK)
    first = done.fed.task.initial
    own, protos = {}, {}
    for draw in done.fed.drawn:
        sent = []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)

            def loss(p, x=x, y=y, protos=protos):
                h = hand.features(p, x)
                apart = [
                    (h[i] - protos[k]).square().mean() if k in protos else h.sum() * 0 for i, k in enumerate(y.tolist())
                ]
                return hand.loss(p, x, y) + lam * torch.stack(apart).mean()

            own[c] = hand.descend(own.get(c, first), loss)
            found = class_means(hand, own[c], x, y)
            sent.append({k: (m, 1 if weight == "one" else int((y == k).sum())) for k, m in found.items()})
        protos = dict(protos)
        for k in range(4):
            if pairs := [s[k] for s in sent if k in s]:
                protos[k] = sum(m * w for m, w in pairs) / sum(w for _, w in pairs)
    for c, state in done.clients().items():
        hand.same(state["model"], own[int(c)])
    assert done.state["known"].tolist() == [float(k in protos) for k in range(4)]
    for k, m in protos.items():
        torch.testing.assert_close(done.state["prototypes"][k], m, rtol=0, atol=1e-12)
    table = torch.stack([protos[k] for k in range(4)])
    for row in done.scores()[1]:
        x, y = hand.data(done.fed, row["client"], "test")
        near = torch.cdist(hand.features(own.get(row["client"], first), x), table).argmin(1)
        assert row["accuracy"] == pytest.approx(float((near == y).double().mean()))


def test_only_prototypes_travel(split) -> None:
    """Two clients of one class each, of two: d floats and a label up, and down what is known: nothing, then both."""
    import numpy as np

    rng = np.random.default_rng(0)
    split([rng.normal(size=(6, 8)) for _ in range(2)], [np.zeros(6), np.ones(6)])
    everyone = {"clients": 2, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}
    done = toy.simulate("fedproto", rounds=2, federation=everyone)
    one = 4 * (16 + 1)
    assert [r["bytes/up"] for r in done.rows] == [2 * one, 2 * one]
    assert [r["bytes/down"] for r in done.rows] == [0, 2 * 2 * one]


def test_a_class_without_a_prototype_is_never_predicted() -> None:
    h, at = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[1.0, 0.0], [9.0, 9.0], [5.0, 5.0]])
    head = torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1)
    some = prototypes.nearest(h, at, torch.tensor([1.0, 0.0, 1.0]), head)
    assert some.argmax(1).tolist() == [0, 2] and some[0].tolist() == [-1.0, -80.0, -50.0]
    assert torch.equal(prototypes.nearest(h, at, torch.zeros(3), head), head)
