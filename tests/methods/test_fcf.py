"""FCF: a user's vector is the minimum of its loss, gradients and the server's step by hand, nothing of a user is sent or kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests import toy
from tests.configs import problems


def by_hand(items: torch.Tensor, taken: torch.Tensor, alpha: float, reg: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A user's vector and its gradients of the items, item by item."""
    c = 1 + alpha * taken
    square = sum(c[i] * torch.outer(items[i], items[i]) for i in range(len(items))) + reg * torch.eye(items.shape[1])
    right = sum(c[i] * taken[i] * items[i] for i in range(len(items)))
    user = torch.linalg.inv(square) @ right
    return user, torch.stack([c[i] * (taken[i] - user @ items[i]) * user for i in range(len(items))])


def took(fed: Any, client: int) -> torch.Tensor:
    f = fed.federation
    taken = torch.zeros(f.classes, dtype=torch.float64)
    taken[f.arrays["y"][f.train[client]]] = 1
    return taken


def test_a_round_by_hand() -> None:
    done = toy.simulate({"name": "fcf", "alpha": 3.0, "reg": 0.2}, dtype="float64", rounds=1, **toy.TASTES)
    first = done.initial["items"]["items.weight"]
    asked = done.fed.drawn[0].ids
    sums = sum(by_hand(first, took(done.fed, c), 3.0, 0.2)[1] for c in asked)
    torch.testing.assert_close(done.state["items"]["items.weight"], first + 2 * 0.01 * (sums - 0.2 * first))
    assert set(done.fed.method.wire.up) == {"gradient"} and not done.fed.method.wire.keep


def test_the_gradient_of_a_users_loss_is_zero_at_its_vector() -> None:
    done = toy.simulate("fcf", dtype="float64", **toy.TASTES)
    method: Any = done.fed.method
    items, taken = done.state["items"]["items.weight"], took(done.fed, 0)

    def loss(user: torch.Tensor) -> torch.Tensor:
        return ((1 + 4.0 * taken) * (taken - items @ user) ** 2).sum() + 0.1 * (user**2).sum()

    assert float(torch.func.grad(loss)(method._solve(items, taken)).abs().max()) < 1e-8


def test_everybody_is_served_its_vector_for_the_newest_table() -> None:
    done = toy.simulate("fcf", dtype="float64", **toy.TASTES)
    fed, items = done.fed, done.state["items"]["items.weight"]
    for row in done.scores()[1]:
        user = by_hand(items, took(fed, row["client"]), 4.0, 0.1)[0]
        model = {"items.weight": items, "user.weight": user[None], "user.bias": torch.zeros(1, dtype=torch.float64)}
        batch = fed.task.batch(
            {n: np.asarray(a)[fed.federation.test[row["client"]]] for n, a in fed.federation.arrays.items()}
        )
        assert row["loss"] == pytest.approx(float(fed.task.metrics(model, batch)["loss"].mean()))


def test_what_it_does_not_read_is_refused() -> None:
    task = {"data": "synthetic:tastes", "model": "factors"}
    base = {"method": "fcf", "task": task, "federation": {"partition": "natural"}}
    assert any("fcf's users take no steps" in p for p in problems(**{**base, "local": {"clip": 1.0}}))
    assert any("linear in an item's vector" in p for p in problems(**{**base, "task": {**task, "model": "ncf"}}))
