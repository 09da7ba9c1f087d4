"""FedPipe: plans that fit, what is sent of them, and means over owners."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.adapters import budget, lora
from rayfed.errors import ConfigError
from rayfed.methods.fedpipe import FedPipe, at_bits, network
from tests import toy

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
UNLIMITED = {"name": "fedpipe", "profile_steps": 2, "aggregate": "pad", "choose": "random"}


def test_means_over_owners_by_hand() -> None:
    """B A of two owners with n = 1 and 3 are 4 and 8: (1 * 4 + 3 * 8) / 4 = 7; a third client does not own the layer and changes nothing. A
    layer that nobody owns stays as it was."""
    names = [f"{layer}.lora_{x}.default.weight" for layer in ("one", "two") for x in "AB"]
    old = {n: torch.zeros(1, 1, dtype=torch.float64) for n in names}
    moved = {n: torch.zeros(3, 1, 1, dtype=torch.float64) for n in names}
    moved[names[0]][:, 0, 0], moved[names[1]][:, 0, 0] = (
        torch.tensor([2.0, 4, 9]).double(),
        torch.tensor([2.0, 2, 9]).double(),
    )
    got: Any = SimpleNamespace(
        ids=(0, 1, 2), examples=torch.tensor([1, 3, 5]), folded={"delta": tree.zeros(old)},
        stacked=lambda part, which: {n: moved[n] for n in which},
    )  # fmt: skip
    state = {"model": old, "ranks": torch.tensor([[1, 0], [1, 0], [0, 0]])}
    made = FedPipe._merged(SimpleNamespace(settings=SimpleNamespace(aggregate="svd")), state, got, None)  # type: ignore[arg-type]
    assert float(made[names[1]] @ made[names[0]]) == pytest.approx(7.0)
    assert all(torch.equal(made[n], old[n]) for n in names[2:])


@pytest.fixture(scope="module")
def runs(on_bert: OnBert) -> dict[str, Any]:
    unlimited = toy.simulate(UNLIMITED, rounds=2, dtype="float64", **on_bert({}))
    net = network(unlimited.fed.task, 4)
    room = budget.memory(net, np.array([1, 1]), 4)
    assert room < budget.memory(net, np.array([1, 0]), 16)
    few = on_bert({"devices": {"profile": "tiers", "tiers": [{"share": 1.0, "speed": 4.0, "memory": room}]}})
    return {
        "unlimited": unlimited,
        "fedit": toy.simulate("fedit", rounds=2, dtype="float64", **on_bert({})),
        "few": toy.simulate({"name": "fedpipe", "profile_steps": 3}, rounds=1, dtype="float64", **few),
    }


def test_without_limits_and_padded_it_is_fedit(runs: dict[str, Any]) -> None:
    """Every layer at the largest rank, for everybody; the choice is random, so that no ask comes first that would draw other rows."""
    assert bool((runs["unlimited"].state["ranks"] == 2).all()) and bool((runs["unlimited"].state["bits"] == 16).all())
    for n, p in runs["fedit"].state["model"].items():
        torch.testing.assert_close(runs["unlimited"].state["model"][n], p, rtol=0, atol=1e-12)
    assert runs["unlimited"].rows[0]["bytes/up"] == pytest.approx(runs["fedit"].rows[0]["bytes/up"], abs=3 * 200)


def test_little_memory_is_few_bits_and_what_is_spent_is_said(runs: dict[str, Any]) -> None:
    few = runs["few"]
    net, state, row = network(few.fed.task, 4), few.state, few.rows[0]
    assert bool((state["bits"] < 16).all()) and float(state["importance"].sum()) == pytest.approx(1.0)
    assert 0 < row["fedpipe/memory"] <= 1 and row["fedpipe/idle"] == pytest.approx(0.0)
    assert row["fedpipe/trained"] == float(state["ranks"][0].numpy() @ net.sizes) < net.sizes.sum() * 2
    assert few.fed.elapsed == pytest.approx(row["fedpipe/seconds"])
    names = lora.pairs(few.fed.task.params_like)
    for at, n in enumerate(names):
        if not int(state["ranks"][:, at].max()):
            assert torch.equal(state["model"][n.a], few.initial["model"][n.a])


def test_each_client_has_its_own_bits() -> None:
    w = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    found = torch.func.vmap(lambda b: at_bits(w, b, (16, 4)))(torch.tensor([16, 4]))
    assert torch.equal(found[0], w) and not torch.equal(found[1], w)


def test_a_device_that_holds_nothing_is_named(on_bert: OnBert) -> None:
    small = {"devices": {"profile": "tiers", "tiers": [{"share": 1.0, "speed": 4.0, "memory": 100.0}]}}
    with pytest.raises(
        ConfigError, match=r"devices: client 0 has 100 bytes and inf s, in which nothing can be trained"
    ):
        toy.simulate("fedpipe", rounds=1, **on_bert(small))
    with pytest.raises(ConfigError, match=r"method.profile_rank: 3 found, allowed: at most adapter.rank, 2"):
        toy.config({"name": "fedpipe", "profile_rank": 3}, **on_bert({}))
