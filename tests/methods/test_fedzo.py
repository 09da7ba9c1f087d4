"""FedZO: all directions of a linear function are its gradient over D, steps in NumPy, one client has no correction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods._bases.zeroth_order import flat
from rayfed.methods.fedzo import differences, directions
from tests import toy
from tests.unit.task.test_oracle import QUADRATICS

STEPS = {"local": {"epochs": None, "steps": 3, "optimizer": {"name": "sgd", "lr": 0.2}}}


def test_all_directions_of_a_linear_function_are_its_gradient_over_d() -> None:
    slope, z = torch.tensor([1.0, -2.0, 0.5, 4.0]).double(), torch.ones(4).double()
    along = directions(torch.tensor(7), 4, 4)
    assert torch.allclose(along @ along.T, torch.eye(4).double(), atol=1e-12)
    assert torch.allclose(differences(lambda points: points @ slope + 3, z, along, 0.01), slope / 4, atol=1e-10)


def test_a_round_in_numpy() -> None:
    """With all D directions a quadratic's estimate is (grad + mu sum_j s_j / D) / D: for f = |z - y|^2 / D, each coordinate."""
    done = toy.simulate(
        {"name": "fedzo", "directions": 4, "mu": 1e-6}, rounds=2, dtype="float64", **toy.merge(QUADRATICS, STEPS)
    )
    fed = toy.make_fed(done.fed.config)
    z = np.ones(4)
    for _ in range(2):
        ends = []
        for i in range(5):
            y, at = fed.federation.arrays["y"][fed.federation.train[i]][0].astype(float), z
            for _ in range(3):
                at = at - 0.2 * 2 * (at - y) / 4 / 4
            ends.append(at)
        z = np.mean(ends, 0)
    np.testing.assert_allclose(flat(done.state["model"]).numpy(), z, atol=1e-5)
    assert float(done.state["queries"]) == 2 * 3 * 5


def test_one_client_is_corrected_by_nothing() -> None:
    one = toy.merge(QUADRATICS, {"task": {"data": {"clients": 1}}, "federation": {"clients": 1}})
    a, b = (
        toy.simulate({"name": "fedzo", "correction": c}, rounds=3, **toy.merge(one, STEPS)) for c in ("none", "control")
    )
    assert tree.same(a.state["model"], b.state["model"])


@pytest.mark.parametrize("correction", ["none", "control"])
def test_it_comes_nearer(correction: Any) -> None:
    done = toy.simulate(
        {"name": "fedzo", "directions": 4, "correction": correction}, rounds=20, **toy.merge(QUADRATICS, STEPS)
    )
    assert float(flat(done.state["model"]).norm()) < 1.0


@pytest.mark.parametrize("name", ["fedzo", "fzoos"])
def test_settings_that_nothing_would_read_are_refused(name: str) -> None:
    given = {"local": {"work": {"kind": "uniform"}, "schedule": {"within": "linear"}}}
    with pytest.raises(ConfigError) as refused:
        toy.config(name, **toy.merge(QUADRATICS, toy.merge(STEPS, given)))
    assert [p.split(" found")[0] for p in refused.value.problems] == [
        "local.work.kind: uniform",
        "local.schedule.within: linear",
    ]


@pytest.mark.parametrize("name", ["fedzo", "fzoos"])
def test_a_visit_takes_as_long_as_its_local_steps(name: str) -> None:
    speed = {"devices": {"profile": "tiers", "tiers": [{"share": 1.0, "speed": 2.0}]}}
    done = toy.simulate({"name": name}, rounds=1, **toy.merge(QUADRATICS, toy.merge(STEPS, speed)))
    assert done.fed.elapsed == 1.5 and set(done.fed.durations()) == {1.5}, "three steps, two a second"
