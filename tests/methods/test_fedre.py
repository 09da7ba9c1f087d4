"""FedRE: shares that sum to 1 over the client's classes; one class is FedGH's message; the header's loss is summed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from tests import toy
from tests.tiny import Watched

EVERYONE = {"clients": 3, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}


def sent(method: str, **more):
    got = toy.simulate(method, rounds=2, kind=Watched, **more).fed.got
    return [(r.gather("mixture"), r.gather("shares")) if method == "fedre" else r.gather("prototypes") for r in got]


def test_shares_are_of_the_clients_own_classes_and_drawn_anew() -> None:
    done = toy.simulate("fedre", rounds=2, kind=Watched, executor="vmap", federation={"per_round": None})
    (_, one), (_, two) = ((r.gather("mixture"), r.gather("shares")) for r in done.fed.got)
    for c, q in one.items():
        has = torch.as_tensor(done.fed.federation.class_counts[c] > 0)
        assert float(q.sum()) == pytest.approx(1, abs=1e-6) and torch.equal(q > 0, has)
        assert not torch.equal(q, two[c]) or int(has.sum()) == 1


@pytest.mark.skipif("fedgh" not in methods.names(), reason="compared with fedgh, which is not there")
def test_of_one_class_it_sends_fedghs_message(split) -> None:
    rng = np.random.default_rng(0)
    split([rng.normal(size=(6, 8)) for _ in range(3)], [np.full(6, k) for k in range(3)], classes=3)
    still = {"federation": EVERYONE, "executor": "vmap"}
    (mixtures, shares), means = sent("fedre", **still)[0], sent("fedgh", **still)[0]
    for k in range(3):
        assert shares[k].tolist() == [float(c == k) for c in range(3)]
        assert torch.equal(mixtures[k], means[k][k])


def test_rounds_by_hand(hand) -> None:
    """With the shares that were drawn: z_i is their mean of class means, the header takes a step along the sum over the batch."""
    method = {"name": "fedre", "server_lr": 0.2, "server_batch": 4}
    done = toy.simulate(method, rounds=3, kind=Watched, **hand.WORK)
    first = done.fed.task.initial
    header, own = {n: first[n] for n in hand.HEAD}, {}
    for got in done.fed.got:
        zs, qs = [], []
        mixtures, shares = got.gather("mixture"), got.gather("shares")
        for c in got.ids:
            x, y = hand.data(done.fed, c)
            own[c] = hand.descend({**own.get(c, first), **header}, lambda p: hand.loss(p, x, y))  # noqa: B023
            h = hand.features(own[c], x)
            zs.append(sum(shares[c][k] * h[y == k].mean(0) for k in y.unique()))
            qs.append(shares[c])
            torch.testing.assert_close(mixtures[c], zs[-1], rtol=0, atol=1e-12)
        for i in range(0, len(zs), 4):
            z, q = torch.stack(zs[i : i + 4]), torch.stack(qs[i : i + 4])
            loss = lambda p: -(q * torch.log_softmax(hand.classify(p, z), 1)).sum()  # noqa: B023, E731
            header = hand.descend(header, loss, 1, lr=0.2)
    hand.same({f"head.{n}": p for n, p in done.state["header"].items()}, header)


def test_a_header_that_does_not_learn_stays_and_bytes_are_one_mixture(split) -> None:
    rng = np.random.default_rng(0)
    split([rng.normal(size=(6, 8)) for _ in range(3)], [np.zeros(6), np.arange(6) % 2, np.arange(6) % 3], classes=3)
    done = toy.simulate({"name": "fedre", "server_lr": 0.0}, rounds=1, federation=EVERYONE)
    assert tree.same(done.state, done.initial)
    assert done.rows[0]["bytes/up"] == 4 * (3 * 16 + 2 * (1 + 2 + 3))
