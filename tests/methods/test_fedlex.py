"""FedLEx: what it reduces to, and its guidance by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods.fedavg import FedAvg
from rayfed.methods.fedlex import FedLEx
from tests import toy
from tests.configs import the_problem


class SkipsOne(FedAvg):
    """FedAvg that begins in round 2."""

    def round(self, state: Any, fed: Any, task: Any) -> Any:
        return state if fed.round == 1 else super().round(state, fed, task)


class AllMove(FedLEx):
    """G = 1 everywhere."""

    def guide(self, squares: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(squares)


class HeadStays(FedLEx):
    """G = 0 on matrices."""

    def guide(self, squares: torch.Tensor) -> torch.Tensor:
        return torch.full_like(squares, float(squares.dim() < 2))


def test_with_g_of_one_it_is_fedavg_to_the_bit() -> None:
    one = toy.simulate(f"{__file__}:AllMove", rounds=3)
    other = toy.simulate(f"{__file__}:SkipsOne", rounds=3)
    assert tree.same(one.state["model"], other.state["model"])


def test_with_g_of_zero_a_tensor_never_moves() -> None:
    done = toy.simulate(f"{__file__}:HeadStays", rounds=3)
    for n, x in done.state["model"].items():
        assert torch.equal(x, done.initial["model"][n]) == (x.dim() >= 2), n


def test_exploration_leaves_the_model() -> None:
    done = toy.simulate("fedlex", rounds=2, until=1)
    assert tree.same(done.state["model"], done.initial["model"]) and float(done.state["explored"]) == 1
    assert len(done.fed.drawn[0].ids) == round(0.3 * 12)


def test_d_is_the_square_of_how_far_the_explorer_went() -> None:
    """One explorer, of as many epochs as FedAvg's clients: its update, squared and scaled tensor by tensor, by NumPy."""
    fedlex = {"name": "fedlex", "explorers": 1e-9, "explore_epochs": 2}
    done = toy.simulate(fedlex, rounds=2, until=1)
    update = toy.simulate("fedavg", rounds=1, federation={"per_round": 1})
    assert update.fed.drawn[0].ids == done.fed.drawn[0].ids
    for n, x in update.state["model"].items():
        d = (x - update.initial["model"][n]).double().numpy() ** 2
        wanted = (d - d.min()) / (d.max() - d.min())
        assert np.allclose(done.state["guide"][n].numpy(), wanted, atol=1e-4), n
        assert float(done.state["guide"][n].min()) == 0 and float(done.state["guide"][n].max()) == 1


@pytest.mark.parametrize("normalise", ["minmax", "robust"])
def test_g_is_between_zero_and_one_and_one_where_nothing_differs(normalise: str) -> None:
    method = FedLEx(FedLEx.Settings(normalise=normalise), toy.config("fedlex"))
    g = method.guide(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]))
    assert (
        float(g.min()) == 0
        and float(g.max()) == 1
        and float(g[3]) == pytest.approx(0.03 if normalise == "minmax" else 0.5)
    )
    assert method.guide(torch.full((3, 2), 0.7)).eq(1).all()


def test_momentum_is_at_the_server() -> None:
    plain, heavy = (toy.simulate({"name": "fedlex", "server_momentum": m}, rounds=2) for m in (0.0, 0.9))
    assert tree.same(plain.state["model"], heavy.state["model"])  # the first step has no past
    later = [toy.simulate({"name": "fedlex", "server_momentum": m}, rounds=3).state["model"] for m in (0.0, 0.9)]
    assert not tree.same(*later)


def test_an_optimizer_that_undoes_the_scaling_is_refused() -> None:
    assert "fedlex needs sgd without" in the_problem(method="fedlex", local={"optimizer": {"name": "adam"}})
