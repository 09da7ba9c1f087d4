"""Local training against torch.nn and torch.optim on the same batches, and what it is made of."""

from __future__ import annotations

from typing import Any

import torch

from rayfed import execute, tree
from rayfed.config.schema import Local
from rayfed.execute.batches import Cohort
from rayfed.task import Task
from rayfed.training import mean_loss, sgd_visit, work
from rayfed.visits import Visit, epochs, steps
from tests import toy
from tests.unit.execute.cohorts import D, cohort, data


def trained(visit: Visit, drawn: Cohort, model: tree.Tree) -> Any:
    """(parts, steps) of a cohort from one model."""
    ((_, parts, _, taken),) = execute.execute_visit("vmap", visit, drawn, {"model": model}, {}, {}, data())
    return parts, taken


def test_work_is_what_the_config_asks_for() -> None:
    assert work(Local()) == epochs(1) and work(Local(epochs=3)) == epochs(3)
    assert work(Local(steps=5), "val", 2) == steps(5, "val", 2)


def test_mean_loss_is_over_real_examples() -> None:
    batch = {"w": torch.tensor([1.0, 1.0, 0.0])}
    assert float(mean_loss(lambda p, b, k: torch.tensor([1.0, 3.0, 100.0]), {}, batch, None)) == 2.0
    assert float(mean_loss(lambda p, b, k: torch.ones(3), {}, {"w": torch.zeros(3)}, None)) == 0.0


def test_default_training_is_plain_torch() -> None:
    """sgd_visit on one client against torch.nn and torch.optim over the same batches."""
    c = toy.config(dtype="float64", local={"optimizer": {"momentum": 0.9, "weight_decay": 0.01}})
    task = Task(c, toy.federation(c))
    visit = sgd_visit(task.loss, c.local)
    drawn = cohort(visit, (3,))
    parts, taken = trained(visit, drawn, task.initial)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(D)
    before = [p.clone() for p in task.initial.values()]
    with torch.no_grad():
        for p, q in zip(net.parameters(), before, strict=True):
            p.copy_(q)
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    d = data()
    batches = drawn.phases[0]
    for rows, weights in zip(batches.rows[0, :, 0], batches.w[0, :, 0], strict=True):
        real = rows[weights > 0]
        opt.zero_grad()
        torch.nn.functional.cross_entropy(net(d["x"][real]), d["y"][real]).backward()
        opt.step()
    assert int(taken) == batches.rows.shape[1] > 1
    for delta, p, q in zip(parts["delta"].values(), net.parameters(), before, strict=True):
        assert float((delta[0] - (p.detach() - q)).abs().max()) < 1e-12


def test_phases_move_only_their_parameters() -> None:
    c = toy.config(dtype="float64")
    task = Task(c, toy.federation(c))
    visit = sgd_visit(task.loss, c.local, phases=[(epochs(1), lambda n: n in task.head)])
    parts, _ = trained(visit, cohort(visit, range(6)), task.initial)
    moved = {n for n, x in parts["delta"].items() if float(x.abs().max()) > 0}
    assert moved == set(task.head) == {"head.weight", "head.bias"}
