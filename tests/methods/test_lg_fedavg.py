"""LG-FedAvg: encoders stay, heads are averaged; with everything shared it is FedAvg."""

from __future__ import annotations

import pytest

from rayfed import methods, tree
from rayfed.errors import ConfigError
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


def test_rounds_by_hand(hand) -> None:
    done = toy.simulate("lg_fedavg", rounds=3, **hand.WORK)
    body = [n for n in done.state["model"] if n not in hand.HEAD]
    hand.private_layers(done, body, lambda p, x, y: hand.descend(p, lambda p: hand.loss(p, x, y)))


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_all_layers_shared_is_fedavg_to_the_bit(executor: str) -> None:
    everything = {"name": "lg_fedavg", "shared": ["body", "head"]}
    done, plain = (toy.simulate(m, executor=executor) for m in (everything, "fedavg"))
    assert tree.same(done.state, plain.state) and done.rows == plain.rows


def test_the_cards_two_parabolas(quadratics) -> None:
    """A network that is all head: FedAvg's x^1, x^2, x^3."""
    for rounds, want in ((1, 0.328039), (2, 0.439431), (3, 0.477256)):
        done = toy.simulate("lg_fedavg", rounds=rounds, **quadratics())
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.shared: 'last' found"):
        toy.simulate({"name": "lg_fedavg", "shared": ["last"]}, rounds=1)
