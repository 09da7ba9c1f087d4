"""FAL: nothing to move is uniform FedAvg to the bit, the ball, FGSM and a round by hand, scores under attack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rayfed import adversarial
from rayfed.config.schema import Adversary, Ball
from tests import toy

FREE = {"low": None, "high": None}  # the toy's inputs are any numbers


@pytest.mark.parametrize("off", [{"rho": 0.0}, {"steps": 0, "random_start": False}])
def test_nothing_to_move_is_uniform_fedavg_to_the_bit(off: dict[str, Any]) -> None:
    ours, theirs = (
        toy.simulate(m, executor="vmap", rounds=1)
        for m in ({"name": "fal", **FREE, **off}, {"name": "fedavg", "weight": "one"})
    )
    assert all(torch.equal(p, theirs.state["model"][n]) for n, p in ours.state["model"].items())


def test_one_step_of_the_whole_ball_is_fgsm() -> None:
    """A linear loss w x with w = (2, -3, 1, 0), rho 0.1, inputs in [0, 1]."""
    w, x = torch.tensor([2.0, -3.0, 1.0, 0.0]), torch.tensor([[0.5, 0.5, 0.95, 0.3]])
    made = adversarial.moved(lambda z: z @ w, x, x, Ball(rho=0.1), 1, 0.1)
    torch.testing.assert_close(made, torch.tensor([[0.6, 0.4, 1.0, 0.3]]))
    round_ball = Ball(rho=0.1, norm="l2", low=None, high=None)
    made = adversarial.moved(lambda z: z @ w, x, x, round_ball, 3, 0.1)  # along w, back on the ball
    torch.testing.assert_close(made, x + 0.1 * w / 14**0.5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_inputs_stay_in_the_ball_and_losses_do_not_fall(norm: str) -> None:
    done = toy.simulate({"name": "fal", **FREE}, rounds=1, dtype="float64")
    task, model, arrays = done.fed.task, done.state["model"], done.fed.federation.arrays
    x, y = torch.as_tensor(arrays["x"][:50]).double(), torch.as_tensor(arrays["y"][:50])
    ball = Ball(rho=0.4, norm=norm, low=-1.0, high=1.0)
    x = x.clamp(-1, 1)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(task.apply(model, z), y, reduction="none")

    began = adversarial.start(x, ball, torch.tensor(7))
    for z in (began, adversarial.moved(loss, x, began, ball, 5, 0.1), adversarial.moved(loss, x, x, ball, 5, 0.1)):
        away = (z - x).abs().amax(1) if norm == "linf" else (z - x).norm(dim=1)
        assert float(away.max()) <= 0.4 + 1e-9 and float(z.abs().max()) <= 1
    assert float(loss(z).mean()) > float(loss(x).mean()) + 0.05
    assert float((began - x).abs().max()) > 0.1


def test_a_step_by_hand(plain: Any) -> None:
    """Two clients, one whole batch each: the gradient at inputs moved by FGSM, half of it with the clean one."""
    method = {"name": "fal", **FREE, "rho": 0.3, "steps": 1, "step": 0.3, "random_start": False, "clean": 0.25}
    changes = {**plain.WORK, "local": {**plain.WORK["local"], "epochs": 1}, "federation": {"per_round": 2}}
    done = toy.simulate(method, rounds=1, **changes)
    w, after = plain.vector(done.initial["model"]), []
    for c in done.fed.drawn[0].ids:
        x, y = plain.data(done.fed, c)
        z = torch.as_tensor(x).requires_grad_()
        weight = torch.as_tensor(w[:-4].reshape(4, -1))
        F.cross_entropy(z @ weight.T + torch.as_tensor(w[-4:]), torch.as_tensor(y)).backward()
        moved = x + 0.3 * z.grad.sign().numpy()
        after.append(w - plain.LR * (0.75 * plain.gradient(w, moved, y) + 0.25 * plain.gradient(w, x, y)))
    assert plain.vector(done.state["model"]) == pytest.approx(sum(after) / 2, abs=1e-12)


@pytest.mark.parametrize("method", ["fedavg", "local_only"])
def test_scores_under_attack(method: str) -> None:
    def scores(executor: str, **adversary: Any) -> dict[str, float]:
        changes = {"evaluate": {"adversary": {**FREE, **adversary}}}
        return toy.simulate(method, rounds=1, executor=executor, dtype="float64", **changes).scores()[0]

    weak, strong = scores("vmap", rho=1e-9), scores("vmap", rho=0.8, steps=3)
    assert weak["accuracy/robust"] == weak["accuracy/personal"] == strong["accuracy/personal"]
    assert weak["loss/robust"] == pytest.approx(weak["loss/personal"], abs=1e-7)
    assert (
        strong["accuracy/robust"] < strong["accuracy/personal"]
        and strong["loss/robust"] > strong["loss/personal"] + 0.2
    )
    assert scores("loop", rho=0.8, steps=3)["loss/robust"] == pytest.approx(strong["loss/robust"], rel=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    split = toy.federation(toy.config("fedavg"))
    found = adversarial.misfit("evaluate.adversary", Adversary(), split)
    assert (
        found[0].startswith("evaluate.adversary.low: 0 found, task.data goes down to -") and "high: 1 found" in found[1]
    )
    assert adversarial.misfit("method", Ball(low=None, high=None), split) == []
    assert Adversary(rho=0.2, steps=10).rate == pytest.approx(0.05)
