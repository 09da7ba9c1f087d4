"""pFedLoRA: a round by hand, models that train as alone, what is sent, and families."""

from __future__ import annotations

import torch

from rayfed import tree
from tests import toy

METHOD = {"name": "pfedlora", "rank": 2}


def test_a_round_by_hand(hand) -> None:
    done = toy.simulate({**METHOD, "mu": 0.3}, rounds=1, until=1, **hand.WORK)
    fed = done.fed
    a0, b0 = done.initial["A"].double(), done.initial["B"].double()
    sent, n = [], []
    (draw,) = fed.drawn
    for c in draw.ids:
        x, y = hand.data(fed, c)
        model, pair = dict(fed.task.initial), {"a": a0, "b": b0}

        def adapted(m, p, x=x, y=y):
            f = hand.features(m, x)
            return torch.nn.functional.cross_entropy(hand.classify(m, f) + f @ p["a"].T @ p["b"].T, y)

        for _ in range(hand.STEPS):
            model = hand.descend(
                model, lambda m, p=pair, x=x, y=y, g=adapted: 0.3 * hand.loss(m, x, y) + 0.7 * g(m, p), steps=1
            )
            pair = hand.descend(pair, lambda p, m=model, g=adapted: g(m, p), steps=1)
        hand.same(done.clients()[str(c)]["model"], model)
        sent.append({"A": pair["a"] - a0, "B": pair["b"] - b0})
        n.append(len(y))
    moved = hand.mean(sent, n)
    hand.same(done.state, {"A": a0 + moved["A"], "B": b0 + moved["B"]})


def test_with_mu_one_models_train_as_alone_to_the_bit() -> None:
    done, alone = (toy.simulate(m, executor="vmap") for m in ({**METHOD, "mu": 1.0}, "local_only"))
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in done.clients().items())
    assert bool(done.state["B"].any())


def test_the_adapter_alone_travels_and_models_may_differ() -> None:
    families = {
        "small": {"name": "mlp", "hidden": [8], "share": 0.5},
        "deep": {"name": "mlp", "hidden": [9, 8], "share": 0.5},
    }
    task = {**toy.TOY["task"], "model": families}
    done = toy.simulate(METHOD, rounds=1, until=1, executor="vmap", **{"task": task})
    pair = 7 * (8 + 4) * 2 * 4
    assert done.rows[0]["bytes/down"] == pair and done.rows[0]["bytes/up"] == pair + 7 * 8  # and n_k
    assert {len(s["model"]) for s in done.clients().values()} == {4, 6}
