"""FedRep: first the head, then the body, each with the other held."""

from __future__ import annotations

import pytest

from rayfed import methods, tree
from rayfed.launch.model_check import find_problems, question
from tests import toy


@pytest.mark.parametrize("weight", ["one", "examples"])
def test_rounds_by_hand(hand, weight: str) -> None:
    method = {"name": "fedrep", "head_epochs": 4, "weight": weight}

    def train(p, x, y):
        head = hand.descend(p, lambda p: hand.loss(p, x, y), 4, hand.HEAD)
        return hand.descend(head, lambda p: hand.loss(p, x, y), hand.STEPS, [n for n in p if n not in hand.HEAD])

    hand.private_layers(toy.simulate(method, rounds=3, **hand.WORK), hand.HEAD, train, weigh=weight == "examples")


@pytest.mark.skipif("fedbabu" not in methods.names(), reason="compared with fedbabu, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_head_that_never_trains_is_fedbabus_to_the_bit(executor: str) -> None:
    still = {"name": "fedrep", "head_epochs": 0, "weight": "examples"}
    done, other = (toy.simulate(m, executor=executor) for m in (still, "fedbabu"))
    assert tree.same(done.state, other.state) and done.rows == other.rows
    assert all(tree.same(s["own"], {n: done.initial["model"][n] for n in s["own"]}) for s in done.clients().values())


def test_the_head_sees_the_representation_as_received(hand) -> None:
    """One head epoch is one step from the received model, whatever the body does afterwards."""
    done = toy.simulate({"name": "fedrep", "head_epochs": 1}, rounds=1, **hand.WORK)
    for c, state in done.clients().items():
        x, y = hand.data(done.fed, int(c))
        want = hand.descend(done.initial["model"], lambda p: hand.loss(p, x, y), 1, hand.HEAD)  # noqa: B023
        hand.same(state["own"], {n: want[n] for n in hand.HEAD})


def test_a_model_that_is_all_head_is_refused_before_anything_starts() -> None:
    c = toy.config("fedrep", task={"model": "linear"})
    (said,) = find_problems({"c": question(c, toy.federation(c))})["c"]
    assert said.startswith("method.private: head found, which leaves nothing to share")
