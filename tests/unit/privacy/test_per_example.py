"""DP-SGD: clipped example by example, by hand; under vmap as in a loop; with an epsilon for epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfed import privacy, tree
from rayfed.launch.model_check import check_models, question
from rayfed.privacy import per_example
from tests import toy
from tests.configs import good, problems, the_problem

PRIVATE = {"norm": 0.5, "noise_multiplier": 1.0}
EVERYONE = {"federation": {"per_round": None}}


def settings(norm: float, noise: float) -> Any:
    return SimpleNamespace(norm=norm, noise_multiplier=noise)


def squared(params: Any, batch: Any, key: Any) -> torch.Tensor:
    """Gradient w - x of each example."""
    return ((params["w"] - batch["x"]) ** 2).sum(1) / 2


def test_each_gradient_is_clipped_by_itself_and_padding_counts_for_nothing() -> None:
    x = torch.tensor([[-3.0, 0.0], [0.0, 0.4], [9.0, 9.0]])
    batch = {"x": x, "y": torch.zeros(3), "w": torch.tensor([1.0, 1.0, 0.0])}
    found = per_example.gradient(squared, {"w": torch.zeros(2)}, batch, torch.tensor(1), settings(1.0, 0.0), size=4)
    assert torch.allclose(found["w"], torch.tensor([1.0, -0.4]) / 4)


def test_the_noise_is_z_c_over_the_batch_size() -> None:
    batch = {"x": torch.zeros(2, 20_000), "y": torch.zeros(2), "w": torch.ones(2)}
    found = per_example.gradient(
        squared, {"w": torch.zeros(20_000)}, batch, torch.tensor(1), settings(0.5, 2.0), size=8
    )
    assert float(found["w"].std()) == pytest.approx(2.0 * 0.5 / 8, rel=0.02)


def test_without_clipping_and_noise_it_is_the_gradient() -> None:
    """A norm that nothing reaches, and whole batches: 12 clients of one batch each train as ever."""
    how: dict[str, Any] = {"local": {"epochs": 1, "batch_size": 37}, "dtype": "float64"}
    plain = toy.simulate(rounds=1, **how)
    large = {"norm": 1e9, "noise_multiplier": 0.01, "accountant": "none"}
    c = toy.config(**toy.merge(how, {"local": {"privacy": large}}))
    task = toy.make_fed(c).task
    batch = {
        "x": torch.randn(37, 8, dtype=torch.float64),
        "y": torch.arange(37) % 4,
        "w": torch.ones(37, dtype=torch.float64),
    }
    wanted = torch.func.grad(lambda p: task.loss(p, batch, torch.tensor(3)).mean())(plain.state["model"])
    found = per_example.gradient(task.loss, plain.state["model"], batch, torch.tensor(3), settings(1e9, 0.0), size=37)
    assert float(tree.norm(tree.sub(found, wanted))) < 1e-12


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedprox"])
def test_loop_is_vmap(method: str) -> None:
    how: dict[str, Any] = {"local": {"privacy": {**PRIVATE, "accountant": "none"}}, "dtype": "float64"}
    loop, vmap = (toy.simulate(method, executor=e, **how) for e in ("loop", "vmap"))
    gap = tree.norm(tree.sub(loop.state["model"], vmap.state["model"]))
    assert float(gap) < 1e-9 * float(tree.norm(tree.sub(loop.state["model"], loop.initial["model"])))


def test_epsilon_is_of_the_epochs_so_far() -> None:
    """Batches of an epoch are disjoint: each example is in one release of each."""
    fed = toy.make_fed(toy.config(local={"epochs": 2, "privacy": PRIVATE}, **EVERYONE))
    fed.begin(3, score_local=True)
    assert fed.dispatch.logged() == {"privacy/epsilon_examples": privacy.epsilon("exact", 1.0, 1.0, 6, 1e-5)}
    fed.begin(3, score_local=False)
    assert fed.dispatch.logged() == {}


def test_what_has_no_epsilon_is_refused_with_the_reason() -> None:
    said = the_problem(local={"privacy": PRIVATE}, method="scaffold")
    assert said.startswith("local.privacy: accountant exact found") and "accountant: none" in said
    assert "epochs" in the_problem(local={"privacy": PRIVATE, "steps": 3}, method="fedavg")
    good(local={"privacy": {**PRIVATE, "accountant": "none"}, "steps": 3}, method="scaffold")
    found = problems(local={"privacy": {**PRIVATE, "accountant": "none", "epsilon": 3}}, method="fedavg")
    assert any(p.startswith("local.privacy.epsilon: 3") for p in found)


def test_a_budget_that_cannot_be_kept_is_refused_with_the_noise_that_keeps_it() -> None:
    said = the_problem(local={"privacy": {**PRIVATE, "epsilon": 2.0}, "epochs": 2}, rounds=5, method="fedavg")
    z = float(said.partition("noise_multiplier of at least ")[2].partition(",")[0])
    assert privacy.epsilon("exact", 1.0, z, 10, 1e-5) <= 2.0 < privacy.epsilon("exact", 1.0, 0.99 * z, 10, 1e-5)


def test_running_statistics_are_refused(nets: Any) -> None:
    c = toy.config(**toy.merge(nets("batchnorm"), {"local": {"privacy": {**PRIVATE, "accountant": "none"}}}))
    asked = question(c, toy.federation(c))
    assert asked is not None and any("one example" in p for p in check_models({"": asked})[""])
