"""Local training against torch.nn and torch.optim on the same batches, and what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import execute, tree
from rayfed.config.schema import Local
from rayfed.execute.batches import Cohort
from rayfed.task import Task
from rayfed.training import clipped, gradient, mean_loss, sgd_visit, work
from rayfed.visits import Visit, epochs, steps
from tests import toy
from tests.unit.execute.cohorts import D, cohort, data, run


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


# -- clipping, smoothing, own formulas ---------------------------------------------------------------------------------


def toy_task(**changes: Any) -> tuple[Any, Task]:
    c = toy.config(dtype="float64", **changes)
    return c.local, Task(c, toy.federation(c))


def both(visit: Visit, shared: tree.Tree, mine: tree.Tree | None = None, clients: Any = range(6)) -> tuple[Any, Any]:
    """(parts, steps) under vmap, which are the loop's."""
    drawn = cohort(visit, clients)
    drawn = drawn.told(visit, mine) if mine else drawn
    (loop, _, few), (vmap, _, same) = (run(e, visit, drawn, shared=shared, mine=mine) for e in ("loop", "vmap"))
    gap = float(tree.norm(tree.sub(loop, vmap)))
    assert gap <= 1e-9 * max(1.0, float(tree.norm(vmap))) and torch.equal(few, same)
    return vmap, same


def test_clipping_is_torchs() -> None:
    local, task = toy_task(local={"clip": 0.05, "optimizer": {"momentum": 0.9}})
    visit = sgd_visit(task.loss, local)
    parts, _ = both(visit, {"model": task.initial}, clients=(3, 7))
    drawn = cohort(visit, (3, 7)).one(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(D)
    with torch.no_grad():
        for p, q in zip(net.parameters(), task.initial.values(), strict=True):
            p.copy_(q)
    opt, d, norms = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), data(), []
    for rows, weights in zip(drawn.phases[0].rows[0, :, 0], drawn.phases[0].w[0, :, 0], strict=True):
        real = rows[weights > 0]
        opt.zero_grad()
        torch.nn.functional.cross_entropy(net(d["x"][real]), d["y"][real]).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)))
        opt.step()
    assert min(norms) > 0.05  # it does something
    for delta, p, q in zip(parts["delta"].values(), net.parameters(), task.initial.values(), strict=True):
        assert float((delta[0] - (p.detach() - q)).abs().max()) < 1e-12


def test_clipping_counts_what_moves_and_leaves_small_ones_alone() -> None:
    grads = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0])}
    assert float(tree.norm(clipped(grads, 1.0))) < 1.0 + 1e-6
    assert torch.allclose(clipped(grads, 1.0, lambda n: n == "a")["a"], torch.tensor([0.6, 0.8]))
    assert tree.same(clipped(grads, 13.1), grads)


def test_smoothed_targets_are_torchs_and_for_training_alone() -> None:
    _, task = toy_task(local={"label_smoothing": 0.2})
    d = data()
    batch = {"x": d["x"][:9], "y": d["y"][:9], "w": torch.ones(9, dtype=D)}
    logits = task.apply(task.initial, batch["x"])
    for key, share in ((torch.tensor(5), 0.2), (None, 0.0)):
        want = torch.nn.functional.cross_entropy(logits, batch["y"], reduction="none", label_smoothing=share)
        assert torch.allclose(task.loss(task.initial, batch, key), want, rtol=0, atol=1e-12)


def test_the_plain_formula_is_the_losss_own_gradient() -> None:
    local, task = toy_task(local={"clip": 0.5})
    plain = sgd_visit(task.loss, local)
    own = sgd_visit(task.loss, local, grad=lambda p, carry, batch, key: (gradient(task.loss, p, batch, key), {}))
    a, b = (both(v, {"model": task.initial})[0] for v in (plain, own))
    assert tree.same(a, b)


def test_a_formula_changes_the_carry_and_sees_several_batches() -> None:
    local, task = toy_task()
    counted = torch.zeros((), dtype=D)

    def start(client: Any) -> Any:
        return {"model": client.shared["model"], "seen": counted}

    def formula(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        one, two = batch
        seen = carry["seen"] + one["w"].sum() + two["w"].sum()
        return tree.add(gradient(task.loss, params, one, key), gradient(task.loss, params, two, key)), {"seen": seen}

    def end(client: Any, carry: Any) -> Any:
        return {"seen": carry["seen"], "delta": tree.sub(carry["model"], client.shared["model"])}, client.own

    twice = [(epochs(1, batches=2), None)]
    visit = sgd_visit(task.loss, local, start=start, grad=formula, end=end, phases=twice)  # type: ignore[arg-type]
    parts, _ = both(visit, {"model": task.initial})
    drawn = cohort(visit, range(6)).phases[0]
    assert torch.equal(parts["seen"], drawn.w.sum((1, 2, 3))) and float(tree.norm(parts["delta"])) > 0.01
    with pytest.raises(TypeError, match="grad and objective"):
        sgd_visit(task.loss, local, grad=formula, objective=lambda p, carry, batch, key: batch["w"])


def test_after_has_the_last_word() -> None:
    local, task = toy_task()
    box = 0.02

    def after(params: Any, carry: Any) -> Any:
        return tree.map(lambda p, q: p.clamp(q - box, q + box), params, task.initial)

    parts, _ = both(sgd_visit(task.loss, local, after=after), {"model": task.initial})
    furthest = max(float(x.abs().max()) for x in tree.values(parts))
    assert furthest == pytest.approx(box, rel=1e-9)


def test_each_client_takes_its_own_steps_at_its_own_rate() -> None:
    """w <- w + rate in every step, since the loss's gradient is -1: delta is steps times rate."""
    local = Local(optimizer={"lr": 0.5})  # type: ignore[arg-type]

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return -params["w"] * torch.ones_like(batch["w"])

    own = [(steps(7, each="steps"), None)]
    visit = sgd_visit(loss, local, phases=own, lr=lambda info, mine: mine["rate"])  # type: ignore[arg-type]
    told, rates = torch.tensor([3, 1, 7, 20, 0, 2]), torch.linspace(0.1, 0.6, 6, dtype=D)
    parts, taken = both(visit, {"model": {"w": torch.zeros((), dtype=D)}}, {"steps": told, "rate": rates})
    assert taken.tolist() == [3, 1, 7, 7, 1, 2]  # no more than are declared, at least one
    assert torch.allclose(parts["delta"]["w"], taken * rates, rtol=1e-12)
    with pytest.raises(TypeError, match="'steps'"):
        cohort(visit).told(visit, {"rate": rates})


def test_a_formulas_first_pass_writes_the_buffers() -> None:
    """Of two forward passes, the second at another point, running statistics follow the first, as without a formula."""
    net = {"task": {"model": {"name": f"{Path(__file__).parents[1] / 'own_nets.py'}:batchnorm"}}}
    local, task = toy_task(**net)

    def formula(params: Any, carry: Any, batch: Any, key: Any) -> Any:
        grads = gradient(task.loss, params, batch, key)
        gradient(task.loss, tree.scale(params, 1.5), batch, key)
        return grads, {}

    assert task.buffers
    a, b = (both(sgd_visit(task.loss, local, grad=f), {"model": task.initial})[0] for f in (None, formula))
    assert tree.same(a, b) and max(float(a["delta"][n].abs().max()) for n in task.buffers) > 0
