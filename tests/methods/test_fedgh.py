"""FedGH: a header that does not learn stays as it was drawn; class means and the header's steps by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods._bases.server_header import fitted
from tests import toy


def test_one_step_of_the_header_by_hand() -> None:
    """From zeros, one pair z = (1, 2) of class 0 of two, rate 0.1: softmax 1/2, so the step is 0.05 z for class 0, -0.05 z for 1."""
    header = {"weight": torch.zeros(2, 2, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}
    z, q = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    out = fitted(header, z, q, 0.1, 1)
    assert out["weight"].tolist() == [[0.05, 0.1], [-0.05, -0.1]] and out["bias"].tolist() == [0.05, -0.05]
    two = fitted(header, z.repeat(2, 1), q.repeat(2, 1), 0.1, 2, mean=False)
    assert two["weight"].tolist() == [[0.1, 0.2], [-0.1, -0.2]], "the sum of a batch's losses"


@pytest.mark.parametrize("batch", [1, 5])
def test_rounds_and_served_models_by_hand(hand, batch: int) -> None:
    method = {"name": "fedgh", "server_lr": 0.2, "server_epochs": 2, "server_batch": batch}
    done = toy.simulate(method, rounds=3, **hand.WORK)
    first = done.fed.task.initial
    header = {n: first[n] for n in hand.HEAD}
    own = {}
    for draw in done.fed.drawn:
        pairs = []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            own[c] = hand.descend({**own.get(c, first), **header}, lambda p: hand.loss(p, x, y))  # noqa: B023
            h = hand.features(own[c], x)
            pairs += [(h[y == k].mean(0), int(k)) for k in y.unique()]
        for _ in range(2):
            for i in range(0, len(pairs), batch):
                z, k = (
                    torch.stack([m for m, _ in pairs[i : i + batch]]),
                    torch.tensor([k for _, k in pairs[i : i + batch]]),
                )
                loss = lambda p: torch.nn.functional.cross_entropy(hand.classify(p, z), k)  # noqa: B023, E731
                header = hand.descend(header, loss, 1, lr=0.2)
    hand.same({f"head.{n}": p for n, p in done.state["header"].items()}, header)
    for c, state in done.clients().items():
        hand.same(state["own"], {n: p for n, p in own[int(c)].items() if n not in hand.HEAD})
    for row in done.scores()[1]:
        loss = hand.loss({**own.get(row["client"], first), **header}, *hand.data(done.fed, row["client"], "test"))
        assert row["loss"] == pytest.approx(float(loss), abs=1e-12)


def test_a_header_that_does_not_learn_stays_as_it_was_drawn() -> None:
    done = toy.simulate({"name": "fedgh", "server_lr": 0.0}, rounds=3, executor="vmap")
    assert tree.same(done.state, done.initial)
    a, b = list(done.clients().values())[:2]
    assert not tree.same(a["own"], b["own"]), "extractors are never averaged"


def test_up_travel_class_means_alone(split) -> None:
    rng = np.random.default_rng(0)
    split([rng.normal(size=(6, 8)) for _ in range(2)], [np.zeros(6), np.arange(6) % 2])
    everyone = {"clients": 2, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}
    done = toy.simulate("fedgh", rounds=1, federation=everyone)
    assert done.rows[0]["bytes/up"] == 4 * 3 * (16 + 1)  # one class here, two there
    assert done.rows[0]["bytes/down"] == 2 * 4 * (2 * 16 + 2)
