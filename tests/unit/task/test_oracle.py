"""Functions of a point: values by hand, and the data of shifted quadratics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed.config.schema import Named
from rayfed.data import synthetic
from rayfed.errors import ConfigError
from tests import toy

QUADRATICS: dict[str, Any] = {
    "task": {"data": {"name": "synthetic:quadratics", "clients": 5, "features": 4, "shift": 2.0}, "model": {"name": "point"},
             "kind": {"name": "oracle"}},
    "federation": {"clients": 5, "per_round": None, "partition": {"kind": "natural"}, "groups": {"kind": "none"},
                   "holdout": {"kind": "none"}},
}  # fmt: skip


def test_values_are_squared_distances_over_d() -> None:
    fed = toy.make_fed(toy.config("fedavg", **QUADRATICS))
    z = torch.tensor([1.0, 0.0, -1.0, 2.0])
    (name,) = fed.task.params_like
    assert fed.task.params_like[name].shape == (4,) and fed.task.initial[name].tolist() == [1.0] * 4
    batch = {"x": torch.zeros(2, 1), "y": torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0] * 4]), "w": torch.ones(2)}
    assert fed.task.loss({name: z}, batch).tolist() == [1.0, 1.5]
    assert fed.task.metrics({name: z}, batch)["loss"].tolist() == [1.0, 1.5]


def named(options: dict[str, Any]) -> Named:
    return Named.model_validate({"name": "synthetic:quadratics", **options})


def test_shifts_sum_to_zero_and_a_clients_rows_are_one() -> None:
    found = synthetic.load(named({"clients": 6, "features": 3, "each": 4, "shift": 2.0}), 1)
    shifts = found.train.y.reshape(6, 4, 3)
    assert (shifts == shifts[:, :1]).all() and np.abs(shifts[:, 0].sum(0)).max() < 1e-5
    assert found.form == "numbers" and (found.test.y == shifts[:, 0]).all()
    assert (
        np.abs(synthetic.load(named({"shift": 4.0}), 1).train.y).max()
        > np.abs(synthetic.load(named({"shift": 2.0}), 1).train.y).max()
    )


def test_gradient_descent_finds_the_mean() -> None:
    done = toy.simulate("fedavg", rounds=30, local={"optimizer": {"lr": 0.5}}, **QUADRATICS)
    (z,) = done.state["model"].values()
    assert float(z.abs().max()) < 0.05


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_it_learns_with_points_alone(model: str) -> None:
    changed = toy.merge(QUADRATICS, {"task": {"model": {"name": model}}})
    with pytest.raises(ConfigError, match="learns with point"):
        from rayfed.launch.federations import Federations

        Federations().of(toy.config("fedavg", **changed))
