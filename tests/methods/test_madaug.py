"""MADAug: no share of augmented rows, or operations that do nothing, is FedAvg to the bit; the policy's step by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.augment._operations import OPERATIONS
from rayfed.methods.madaug import straight_through
from tests import toy
from tests.conformance.test_settings import IMAGES

EARLY: dict[str, Any] = {"name": "madaug", "from_round": 1, "floor": 0.5}


@pytest.mark.parametrize("settings", [{"most": 0.0}, {"operations": "identity"}], ids=["no share", "identity"])
def test_it_is_fedavg_to_the_bit_and_the_policy_learns_all_the_same(settings: dict[str, Any]) -> None:
    done, plain = (toy.simulate(m, executor="vmap", **IMAGES) for m in ({**EARLY, **settings}, "fedavg"))
    assert tree.same(done.state["model"], plain.state["model"])
    assert not tree.same(done.state["policy"], done.initial["policy"])


def test_without_policy_steps_the_policy_stays_and_private_ones_differ() -> None:
    late = toy.simulate({**EARLY, "from_round": 3}, executor="vmap", **IMAGES)
    assert tree.same(late.state["policy"], late.initial["policy"])
    own = toy.simulate({**EARLY, "scope": "private"}, executor="vmap", **IMAGES)
    assert tree.same(own.state["policy"], own.initial["policy"])
    a, b, *_ = [c["policy"] for c in own.clients().values()]
    assert not tree.same(a, b)


def test_straight_through_is_the_image_and_its_slope_one() -> None:
    images, m = torch.rand(2, 3, 1, 4, 4), torch.rand(3, 2)
    assert torch.equal(straight_through(images, m), images)
    slopes = torch.func.grad(lambda m: straight_through(images, m).sum())(m)
    assert torch.equal(slopes, torch.full((3, 2), 16.0))


def test_operations_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 4, 4)
    zero, one, key = torch.zeros(()), torch.ones(()), torch.tensor(3)
    for name, f in OPERATIONS.items():
        torch.testing.assert_close(f(x, zero, key), x, msg=name)
        assert torch.equal(f(x, one, key), x) == (name == "identity")
    right = OPERATIONS["translate"](x, torch.tensor(1 / 1.2), key)  # one pixel of 0.3 * 4
    torch.testing.assert_close(right, F.pad(x, (1, 0))[..., :4])
    assert OPERATIONS["brightness"](x, one, key).sum() == pytest.approx(12.0)
    assert OPERATIONS["contrast"](x, one, key)[0, 0, 0] == -7.5
    middle = torch.ones(1, 5, 5)
    torch.testing.assert_close(OPERATIONS["rotate"](middle, one, key)[0, 1:4, 1:4], torch.ones(3, 3))
    assert (OPERATIONS["cutout"](torch.ones(1, 9, 9), one, key) == 0).sum() <= 25


def test_a_policy_step_by_hand() -> None:
    """The validation loss after one step on the mixture, and its slope by torch's own autograd."""
    done = toy.simulate(EARLY, rounds=1, dtype="float64", **IMAGES)
    method, task, model = done.fed.method, done.fed.task, done.initial["model"]
    h = {n: p.clone().requires_grad_() for n, p in done.initial["policy"].items()}
    x, y = torch.rand(6, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    val = {
        "x": torch.rand(3, 1, 4, 4, dtype=torch.float64),
        "y": torch.tensor([2, 0, 1]),
        "w": torch.tensor([1.0, 1.0, 0.0]),
    }
    carry = {"model": model, "val": val, "rate": 0.3}
    batch, key = {"x": x, "y": y, "w": torch.ones(6, dtype=torch.float64)}, torch.tensor(5)
    value, size = method.validated(task, h, carry, batch, key)
    out = F.linear(task.features(model, x), h["w"], h["b"])
    m, p = torch.sigmoid(out[:, :6]), torch.softmax(out[:, 6:] / 3.0, 1)
    assert float(size) == pytest.approx(float((m * p).sum(1).mean()))
    images = method.changed(x, m.detach(), key)
    mixed = sum(p[:, k, None, None, None] * (images[k] + (m - m.detach())[:, k, None, None, None]) for k in range(6))
    theta = {n: v.clone().requires_grad_() for n, v in model.items()}
    slope = torch.autograd.grad(F.cross_entropy(task.apply(theta, mixed), y), list(theta.values()), create_graph=True)
    after = {n: v - 0.3 * g for (n, v), g in zip(theta.items(), slope, strict=True)}
    want = F.cross_entropy(task.apply(after, val["x"][:2]), val["y"][:2])
    assert float(value) == pytest.approx(float(want), abs=1e-12)
    got = torch.func.grad(lambda h: method.validated(task, h, carry, batch, key)[0])(tree.detach(h))
    for g, w in zip(got.values(), torch.autograd.grad(want, list(h.values())), strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-12)
    assert float(torch.stack([g.abs().max() for g in got.values()]).max()) > 0 and math.isfinite(float(value))


def test_a_policys_step_leaves_running_statistics() -> None:
    done = toy.simulate(EARLY, rounds=1, dtype="float64", **IMAGES)
    method, task, model = done.fed.method, done.fed.task, done.initial["model"]
    name = next(iter(model))
    x, y, key = torch.rand(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3]), torch.tensor(5)
    batch = {"x": x, "y": y, "w": torch.ones(4, dtype=torch.float64)}

    def after(buffers: tuple[str, ...], rate: float) -> float:
        task.buffers = buffers
        carry = {"model": model, "val": batch, "rate": rate}
        return float(method.validated(task, done.initial["policy"], carry, batch, key)[0])

    assert after((), 0.3) != after((name,), 0.3)
    assert after((name,), 0.0) == after((), 0.0)


def test_what_it_refuses() -> None:
    with pytest.raises(Exception, match="madaug learns by validation rows"):
        toy.simulate("madaug", **toy.merge(IMAGES, {"federation": {"split": {"val": 0.0}}}))
