"""FedPer: the head never travels; rounds by hand; layers that the model lacks are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed import methods, tree
from rayfed.errors import ConfigError
from tests import toy

NETS = Path(__file__).parents[1] / "own_nets.py"


def test_rounds_by_hand(hand) -> None:
    done = toy.simulate("fedper", rounds=3, **hand.WORK)
    hand.private_layers(done, hand.HEAD, lambda p, x, y: hand.descend(p, lambda p: hand.loss(p, x, y)))


def test_shared_and_private_are_the_model_and_disjoint() -> None:
    done = toy.simulate({"name": "fedper", "private": ["head", "bias"]}, rounds=1)
    wire, task = done.fed.method.wire, done.fed.task
    shared, private = (set(p.shape.select(task.params_like, task)) for p in (wire.up["delta"], wire.keep["own"]))
    assert private == {"head.weight", "head.bias", "body.0.bias"} and shared == {"body.0.weight"}
    kept = {n: p for n, p in done.state["model"].items() if n in private}
    assert tree.same(kept, {n: done.initial["model"][n] for n in kept}), "the server has no client's private layers"


@pytest.mark.skipif("lg_fedavg" not in methods.names(), reason="compared with lg_fedavg, which is not there")
def test_a_private_body_is_lg_fedavg_to_the_bit() -> None:
    done, other = (toy.simulate(m, executor="vmap") for m in ({"name": "fedper", "private": ["body"]}, "lg_fedavg"))
    assert tree.same(done.state, other.state) and tree.same(done.clients(), other.clients()) and done.rows == other.rows


def test_the_head_of_an_own_network_is_its_last_linear_layer() -> None:
    done = toy.simulate("fedper", rounds=1, task={"model": {"name": f"{NETS}:batchnorm"}})
    assert all(set(s["own"]) == {"3.weight", "3.bias"} for s in done.clients().values())


@pytest.mark.parametrize(("words", "said"), [(["haed"], "did you mean 'head'"), (["head", "body"], "nothing to share")])
def test_what_cannot_be_private_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.private: .*{said}") as refused:
        toy.simulate({"name": "fedper", "private": words}, rounds=1)
    assert refused.value.exit_code == 2
