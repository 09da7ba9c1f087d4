"""AFA-CD: equal workers are uniform FedAvg, one step each is gradient descent, who comes often pulls the model towards itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy

ALL = {"federation": {"per_round": None}}


@pytest.mark.parametrize("method", ["afa_cd", "afa_cs"])
def test_equal_workers_are_uniform_fedavg(plain: Any, method: str) -> None:
    """K_i = 3, everybody arrives, server_lr = lr K."""
    settings = {"name": method, "least": 3, "most": 3, "buffer": 12, "server_lr": 3 * plain.LR}
    done = toy.simulate(settings, rounds=3, **toy.merge(plain.WORK, ALL))
    x = plain.vector(done.initial["model"])
    for _ in range(3):
        x = np.mean([plain.descend(x, *plain.data(done.fed, i)) for i in range(12)], 0)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-10)


@pytest.mark.parametrize("method", ["afa_cd", "afa_cs"])
def test_one_step_each_is_gradient_descent(plain: Any, method: str) -> None:
    settings = {"name": method, "least": 1, "most": 1, "buffer": 12, "server_lr": 0.7}
    done = toy.simulate(settings, rounds=3, **toy.merge(plain.WORK, ALL))
    x = plain.vector(done.initial["model"])
    for _ in range(3):
        x = x - 0.7 * np.mean([plain.gradient(x, *plain.data(done.fed, i)) for i in range(12)], 0)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


def test_workers_choose_their_steps_and_the_direction_is_per_step() -> None:
    """A loss whose gradient is constant: G_i is the same whatever K_i is, and visits take as many steps as were drawn."""
    settings = {"name": "afa_cd", "most": 6, "buffer": 7}
    done = toy.simulate(settings, rounds=1, dtype="float64")
    task = done.fed.task
    task.loss = lambda params, batch, key=None: sum(p.sum() for p in params.values()) * torch.ones_like(batch["w"])
    asked, real = [], done.fed.ask

    def ask(*args: Any, **more: Any) -> Any:
        asked.append(real(*args, **more))
        return asked[-1]

    done.fed.pool.worker.runs["toy"].task.loss = task.loss
    done.fed.pool.worker.runs["toy"]._visits.clear()
    done.fed.ask = ask  # type: ignore[method-assign]
    done.fed.begin(2)
    state = done.fed.method.round(done.state, done.fed, task)
    taken = {r.client: r.steps for got in asked for r in got}
    assert taken == {c: int(state["steps"][c]) for c in taken} and len(set(taken.values())) > 2
    moved = tree.sub(state["model"], done.state["model"])
    assert all(torch.allclose(x, torch.full_like(x, -0.5)) for x in tree.values(moved))


def test_steps_differ_from_round_to_round_and_by_key() -> None:
    a, b = (toy.simulate({"name": m, "buffer": 7}, rounds=2).state["steps"] for m in ("afa_cd", "afa_cs"))
    one = toy.simulate({"name": "afa_cd", "buffer": 7}, rounds=1).state["steps"]
    assert torch.equal(a, b) and not torch.equal(a, one) and int(a.max()) <= 10
    assert (one > 0).sum() == 7


@pytest.mark.parametrize("method", ["afa_cd", "afa_cs"])
def test_what_cannot_work_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match="mean gradients"):
        toy.config(method, local={"optimizer": {"momentum": 0.9}})
    with pytest.raises(ConfigError, match=r"method\.least: 5 found, method\.most: 3"):
        toy.config({"name": method, "least": 5, "most": 3})
