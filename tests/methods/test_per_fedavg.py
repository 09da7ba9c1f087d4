"""Per-FedAvg, first order: steps in NumPy, alpha = 0 is FedAvg on every other batch, the served model has taken its step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.execute.batches import BatchSampler
from tests import toy


def test_two_rounds_in_numpy(plain: Any) -> None:
    """Whole batches, so that D1 = D2 is a client's whole data; three epochs are two steps, the last of which borrows a batch."""
    alpha = 0.4
    done = toy.simulate({"name": "per_fedavg", "alpha": alpha}, **plain.WORK)
    x = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        data = [plain.data(done.fed, i) for i in draw.ids]
        n = np.array([len(y) for _, y in data], float)
        ends = []
        for one in data:
            y = x
            for _ in range(2):
                y = y - plain.LR * plain.gradient(y - alpha * plain.gradient(y, *one), *one)
            ends.append(y)
        x = (n / n.sum()) @ np.stack(ends)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


def test_without_the_inner_step_it_is_fedavg_on_the_second_batches() -> None:
    """By hand: the batches of each step are those of `batches=2`."""
    done = toy.simulate({"name": "per_fedavg", "alpha": 0.0}, rounds=1, dtype="float64", federation={"per_round": 1})
    (i,) = done.fed.drawn[0].ids
    task, rows = done.fed.task, done.fed.federation
    visit = done.fed.method.train(task)
    sampler = BatchSampler(rows, seed=1, batch_size=8, device="cpu", dtype=torch.float64)
    drawn = sampler.cohort(visit, [i], dispatch=(1 << 20) + 1, round=1, rounds=1, lr=0.1).phases[0]
    x, y = (torch.tensor(rows.arrays[k]) for k in ("x", "y"))
    model = done.initial["model"]
    for t in range(drawn.rows.shape[1]):
        at, w = drawn.rows[0, t, 1], drawn.w[0, t, 1]
        batch = {"x": x[at].to(torch.float64), "y": y[at], "w": w}

        def loss(p: Any, batch: Any = batch, w: Any = w) -> Any:
            return (task.loss(p, batch) * w).sum() / w.sum()

        model = tree.add(model, torch.func.grad(loss)(model), -0.1)
    assert float(tree.norm(tree.sub(model, done.state["model"]))) < 1e-12


@pytest.mark.parametrize(
    "local", [{}, {"optimizer": {"name": "adam"}, "clip": 0.01}, {"schedule": {"within": "linear"}}]
)
def test_the_served_model_has_taken_its_steps(plain: Any, local: dict[str, Any]) -> None:
    """Plain ones, as the inner step of training is, whatever takes the outer one."""
    settings = {"name": "per_fedavg", "alpha": 0.3, "adapt_steps": 2}
    done = toy.simulate(settings, rounds=1, **toy.merge(plain.WORK, {"local": local}))
    _, clients = done.scores()
    x = plain.vector(done.state["model"])
    for row in clients[:12]:
        data = plain.data(done.fed, row["client"])
        y = plain.descend(x, *data, steps=2, lr=0.3)
        test = plain.data(done.fed, row["client"], "test")
        assert abs(row["loss"] - plain.loss(y, *test)) < 1e-9
