"""FedBABU: the head stays as it was drawn, rounds and served models by hand."""

from __future__ import annotations

import pytest
import torch

from rayfed import tree
from tests import toy


def test_rounds_and_served_models_by_hand(hand) -> None:
    method = {"name": "fedbabu", "finetune_epochs": 4, "finetune_lr": 0.05}
    done = toy.simulate(method, rounds=3, **hand.WORK)
    model = {n: p.clone() for n, p in done.initial["model"].items()}
    body = [n for n in model if n not in hand.HEAD]
    for draw in done.fed.drawn:
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            after = hand.descend(model, lambda p: hand.loss(p, x, y), moves=body)  # noqa: B023
            updates.append({k: after[k] - model[k] for k in body})
            n.append(len(y))
        model |= {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    hand.same(done.state["model"], model)
    for row in done.scores()[1]:
        x, y = hand.data(done.fed, row["client"])
        tuned = hand.descend(model, lambda p: hand.loss(p, x, y), 4, lr=0.05)  # noqa: B023
        assert row["loss"] == pytest.approx(
            float(hand.loss(tuned, *hand.data(done.fed, row["client"], "test"))), abs=1e-12
        )


def test_the_head_never_moves_and_never_travels() -> None:
    done = toy.simulate("fedbabu", rounds=2, executor="vmap")
    head = {n: p for n, p in done.state["model"].items() if n.startswith("head.")}
    assert tree.same(head, {n: done.initial["model"][n] for n in head})
    body = sum(p.numel() * p.element_size() for n, p in done.state["model"].items() if n not in head)
    assert [r["bytes/down"] for r in done.rows] == [body * len(d.ids) for d in done.fed.drawn]


def test_without_fine_tuning_the_global_model_is_served(hand) -> None:
    done = toy.simulate({"name": "fedbabu", "finetune_epochs": 0}, **hand.WORK)
    for row in done.scores()[1]:
        loss = hand.loss(done.state["model"], *hand.data(done.fed, row["client"], "test"))
        assert row["loss"] == pytest.approx(float(loss), abs=1e-12)


@pytest.mark.parametrize("part", ["head", "body"])
def test_what_fine_tuning_moves(hand, part: str) -> None:
    done = toy.simulate({"name": "fedbabu", "finetune_epochs": 2, "finetune": part}, rounds=1, **hand.WORK)
    moves = [n for n in done.state["model"] if (n in hand.HEAD) == (part == "head")]
    row = done.scores()[1][0]
    x, y = hand.data(done.fed, row["client"])
    tuned = hand.descend(done.state["model"], lambda p: hand.loss(p, x, y), 2, moves)
    with torch.no_grad():
        assert row["loss"] == pytest.approx(
            float(hand.loss(tuned, *hand.data(done.fed, row["client"], "test"))), abs=1e-12
        )
