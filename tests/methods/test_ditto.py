"""Ditto: the global model is FedAvg's, the personal one is that of two parabolas worked by hand."""

from __future__ import annotations

import pytest

from rayfed import methods, tree
from tests import toy

needs = pytest.mark.skipif(not {"fedavg", "fedoa"} <= set(methods.names()), reason="compared with fedavg and fedoa")


def test_the_cards_two_parabolas(quadratics) -> None:
    """v_i at the minimum of f_i + (v - x)^2 / 2 as 20 steps a round find it, lam = 1; x goes as FedAvg's."""
    changes = quadratics()
    for rounds, want in ((1, 0.328039), (2, 0.439431), (3, 0.477256)):
        done = toy.simulate({"name": "ditto", "lam": 1.0}, rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)
    done = toy.simulate({"name": "ditto", "lam": 1.0}, rounds=30, **changes)
    v = [float(done.clients()[c]["v"]["head.weight"]) for c in ("0", "1")]
    assert v == pytest.approx([0.954246, -0.251648], abs=1e-6)


@needs
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_the_global_model_is_fedavgs_to_the_bit(executor: str) -> None:
    done, plain = (toy.simulate(m, executor=executor) for m in ({"name": "ditto", "lam": 2.0}, "fedavg"))
    assert tree.same(done.state, plain.state)
    assert [r["bytes/up"] for r in done.rows] == [r["bytes/up"] for r in plain.rows]
    unseen, fedavgs = (r.scores()[0]["loss/unseen"] for r in (done, plain))
    assert unseen == pytest.approx(fedavgs, rel=1e-5), "who never took part is served the global model"


@needs
def test_the_personal_model_is_that_of_fedoas_pull_of_weights() -> None:
    """The same formula written twice, bit for bit."""
    fedoa = {"name": "fedoa", "gap": "weights", "lam": 0.3, "personal_from": 1, "weight": "examples"}
    done, other = (toy.simulate(m, executor="vmap", rounds=3) for m in ({"name": "ditto", "lam": 0.3}, fedoa))
    assert done.clients().keys() == other.clients().keys()
    assert all(tree.same(s["v"], other.clients()[c]["personal"]) for c, s in done.clients().items())


def test_without_the_pull_it_is_local_training(hand) -> None:
    """Own epochs at an own rate, round after round from where it was; the global model plays no part."""
    method = {"name": "ditto", "lam": 0.0, "personal_epochs": 2, "personal_lr": 0.05}
    done = toy.simulate(method, rounds=3, **hand.WORK)
    for c, state in done.clients().items():
        x, y = hand.data(done.fed, int(c))
        steps = 2 * sum(int(c) in d.ids for d in done.fed.drawn)
        hand.same(state["v"], hand.descend(done.initial["model"], lambda p: hand.loss(p, x, y), steps, lr=0.05))  # noqa: B023
