"""FedMD: nothing digested is local training; two rounds by hand; what is sent is the answers on the public set alone."""

from __future__ import annotations

import pytest
import torch

from rayfed import tree
from tests import toy

PUBLIC = {"federation": {"public": {"rows": 12}}}


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_digesting_it_is_local_training_to_the_bit(executor: str) -> None:
    method = {"name": "fedmd", "digest_epochs": 0}
    done, alone = (toy.simulate(m, executor=executor, **PUBLIC) for m in (method, "local_only"))
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in done.clients().items())


def test_in_the_first_round_there_is_nothing_to_digest() -> None:
    """With momentum and weight decay, which would move a model without a gradient."""
    work = {"local": {"optimizer": {"momentum": 0.9, "weight_decay": 0.1}}, **PUBLIC}
    once = toy.simulate("fedmd", rounds=2, until=1, **work)
    never = toy.simulate({"name": "fedmd", "digest_epochs": 3}, rounds=2, until=1, **work)
    assert once.clients().keys() == never.clients().keys()
    assert all(tree.same(s["model"], never.clients()[c]["model"]) for c, s in once.clients().items())


@pytest.mark.parametrize("digest", ["l1", "kl"])
def test_two_rounds_by_hand(hand, digest: str) -> None:
    settings = {"name": "fedmd", "digest": digest, "digest_lr": 0.3, **({"tau": 2.0} if digest == "kl" else {})}
    done = toy.simulate(settings, rounds=2, **hand.WORK, **PUBLIC)
    fed, first = done.fed, done.fed.task.initial
    x = fed.public()["x"]
    own, consensus = {}, None
    for draw in fed.drawn:
        sent = []
        for c in draw.ids:
            model = own.get(c, first)
            if consensus is not None:

                def loss(p, q=consensus):
                    f = hand.logits(p, x)
                    if digest == "l1":
                        return (f - q).abs().mean()
                    t, s = torch.log_softmax(q / 2, -1), torch.log_softmax(f / 2, -1)
                    return 4 * (t.exp() * (t - s)).sum(-1).mean()

                model = hand.descend(model, loss, steps=1, lr=0.3)
            rows = hand.data(fed, c)
            own[c] = hand.descend(model, lambda p, rows=rows: hand.loss(p, *rows))
            sent.append(hand.logits(own[c], x))
        consensus = torch.stack(sent).mean(0).detach()
    for c, state in done.clients().items():
        hand.same(state["model"], own[int(c)])
    torch.testing.assert_close(done.state["consensus"], consensus, rtol=0, atol=1e-12)


def test_bytes_are_those_of_the_answers() -> None:
    done = toy.simulate("fedmd", **PUBLIC)
    assert [r["bytes/up"] for r in done.rows] == [7 * 12 * 4 * 4] * 2
    assert [r["bytes/down"] for r in done.rows] == [7 * (12 * 4 + 1) * 4] * 2
