"""FedD2S: without soft labels local training; a round by hand; no gradient behind the cut; nothing travels once all blocks have left."""

from __future__ import annotations

import pytest
import torch

from rayfed import tree
from rayfed.methods import fedd2s
from tests import toy

DEEP = {"task": {"model": {"name": "mlp", "hidden": [16, 8]}}}


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_soft_labels_it_is_local_training_to_the_bit(executor: str) -> None:
    done, alone = (toy.simulate(m, executor=executor) for m in ({"name": "fedd2s", "alpha": 0.0}, "local_only"))
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in done.clients().items())


def test_blocks_leave_from_the_deepest_on_and_then_nothing_travels() -> None:
    done = toy.simulate({"name": "fedd2s", "drop": 1.0, "samples": 1}, rounds=3, **DEEP)
    method = done.fed.method
    assert [method.depth(2, r) for r in (1, 2, 3, 4)] == [2, 1, 0, 0]
    assert [r["bytes/up"] > 0 for r in done.rows] == [r["bytes/down"] > 0 for r in done.rows] == [True, True, False]
    per_row = [8 + 8 + 8 * 4 + 4 * 4, 8 + 8 + 16 * 4 + 4 * 4]  # number, label, z, p: 7 clients of one batch of 8
    assert [r["bytes/up"] for r in done.rows[:2]] == [7 * 8 * n for n in per_row]


def test_the_soft_labels_have_no_gradient_behind_their_block() -> None:
    task = toy.make_fed(toy.config("fedd2s", **DEEP)).task
    q, x = torch.softmax(torch.randn(5, 4), -1), torch.rand(5, 8)
    aux = {n: p + 0.1 for n, p in fedd2s.auxiliary(task, 1).items()}
    slopes = torch.func.grad(lambda m: fedd2s.soft_loss(task, m, aux, x, q, 1, 2.0).sum())(task.initial)
    assert {n for n, g in slopes.items() if g.any()} == {"body.0.weight", "body.0.bias"}
    slopes = torch.func.grad(lambda m: fedd2s.soft_loss(task, m, {}, x, q, 2, 2.0).sum())(task.initial)
    assert all(g.any() for g in slopes.values())


def test_a_round_by_hand(hand) -> None:
    s = {
        "name": "fedd2s",
        "samples": 1,
        "server_batch": 1000,
        "server_steps": 3,
        "server_lr": 0.5,
        "alpha": 0.7,
        "beta": 0.3,
    }
    done = toy.simulate(s, rounds=1, **hand.WORK)
    first = done.fed.task.initial

    def apart(t: torch.Tensor, f: torch.Tensor) -> torch.Tensor:  # at temperature 2
        return 4 * (t * (t.log() - torch.log_softmax(f / 2, -1))).sum(-1).mean()

    clients = done.fed.drawn[0].ids
    rows = {c: hand.data(done.fed, c) for c in clients}
    z = {c: hand.features(first, x) for c, (x, _) in rows.items()}
    p = {c: torch.softmax(hand.classify(first, h) / 2, -1) for c, h in z.items()}
    h, y, t = (torch.cat(list(v)) for v in (z.values(), [y for _, y in rows.values()], p.values()))

    def server(g):
        f = hand.classify(g, h)
        return torch.nn.functional.cross_entropy(f, y) + 0.3 * apart(t, f)

    head = hand.descend(done.initial["heads"]["all"]["1"], server, steps=3, lr=0.5)
    hand.same(done.state["heads"]["all"]["1"], head)
    for c, (x, y) in rows.items():
        q = torch.softmax(hand.classify(head, z[c]) / 2, -1)

        def loss(m, x=x, y=y, q=q):
            return hand.loss(m, x, y) + 0.7 * apart(q, hand.logits(m, x))

        trained = hand.descend(first, loss)
        hand.same(done.clients()[str(c)]["model"], trained)


def test_with_families_every_family_has_its_own_heads() -> None:
    two = {"a": {"name": "mlp", "hidden": [16], "share": 0.5}, "b": {"name": "mlp", "hidden": [12, 10], "share": 0.5}}
    done = toy.simulate({"name": "fedd2s", "samples": 1}, task={"model": two})
    heads = {n: {d: g["head.weight"].shape[1] for d, g in h.items()} for n, h in done.state["heads"].items()}
    assert heads == {"a": {"1": 16}, "b": {"1": 10, "2": 10}}
    assert tree.finite(done.state)
