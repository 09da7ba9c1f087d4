"""FedBN: normalisation layers stay with their clients; without such layers it is FedAvg to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rayfed import tree
from tests import toy

NETS = Path(__file__).parents[1] / "own_nets.py"


def net(name: str) -> dict[str, Any]:
    return {"task": {"model": {"name": f"{NETS}:{name}"}}}


def test_the_layers_stay_with_their_clients() -> None:
    bn = toy.simulate("fedbn", executor="vmap", rounds=3, **net("batchnorm"))
    layers = [n for n in bn.state["model"] if n.startswith("1.")]
    assert len(layers) == 5 and all(torch.equal(bn.state["model"][n], bn.initial["model"][n]) for n in layers)
    assert all(set(s["own"]) == set(layers) for s in bn.clients().values())


def test_without_such_layers_it_is_fedavg_to_the_bit() -> None:
    same = [toy.simulate(m, executor="vmap", rounds=2, **net("dropout")) for m in ("fedbn", "fedavg")]
    assert tree.same(same[0].state["model"], same[1].state["model"])
