"""FedLEASE: routes and clusters by hand; one expert is FedIT; clients of a cluster are served what it learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods import fedlease
from tests import toy

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
ALL = {"federation": {"per_round": None}}


def test_routes_by_hand() -> None:
    """Two experts, three routes: the two largest count, and the own expert is always among them."""
    own, other = torch.softmax(torch.tensor([3.0, 2.0]), 0).tolist()
    assert fedlease.routed(torch.tensor([1.0, 3.0, 2.0]), 2).tolist() == pytest.approx([own, other])
    assert fedlease.routed(torch.tensor([3.0, 2.0, 1.0]), 2).tolist() == [1, 0]
    random = fedlease.routed(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), 4)
    torch.testing.assert_close(random.sum(-1), torch.ones(50))
    assert bool((random[:, 0] > 0).all()) and bool(((random > 0).sum(-1) <= 4).all())


def test_distances_and_their_number_of_clusters_by_hand() -> None:
    b = [torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3.0]])[..., None], torch.ones(4, 2, 1)]
    d = fedlease.distances(b)
    assert np.allclose(d, [[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]], atol=1e-12)
    assert fedlease.clusters_of(d, 3).tolist() == [0, 0, 1, 1]
    assert fedlease.clusters_of(d, 1).tolist() == [0] * 4 and fedlease.clusters_of(d[:2, :2], 3).tolist() == [0, 0]


def test_one_expert_is_fedit(on_bert: OnBert) -> None:
    asked: Any = {"dtype": "float64", "executor": "vmap", **on_bert(ALL)}
    one, plain = toy.simulate({"name": "fedlease", "most": 1}, **asked), toy.simulate("fedit", **asked)
    whole = {**tree.pick(one.state["experts"], 0), **one.state["head"]}
    for n, p in plain.state["model"].items():
        torch.testing.assert_close(whole[n], p, rtol=1e-9, atol=1e-12)


def test_who_stands_beside_a_client_are_the_other_experts() -> None:
    shared = {
        "experts": {"w": torch.tensor([[0.0], [1], [2]])},
        "gates": {"w": torch.tensor([[5.0], [6], [7]])},
        "head": {},
    }
    made = fedlease.served(shared, torch.tensor(1))
    assert made["own"]["w"].tolist() == [1] and made["others"]["w"].tolist() == [[0], [2]]
    assert made["gate"]["w"].tolist() == [6]
