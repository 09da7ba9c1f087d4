"""FedKA: with its parts off FedAvg of equal weights; gradient reversal, distances and votes by hand; no label of the target is read."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.methods.fedka import domain_loss, mmd, reversed_gradient
from tests import toy

CHANGES: dict[str, Any] = {"federation": {"public": {"rows": 20}}, "local": {"epochs": None, "steps": 4}}
OFF = {"name": "fedka", "adversarial": False, "matching": False, "voting": False}


class Keeps(toy.ToyFed):
    """Keeps the updates of its last ask."""

    def ask(self, visit: Any, to: Any, **more: Any) -> Any:
        got = super().ask(visit, to, **{**more, "keep": "delta"})
        self.updates = got.gather("delta")
        return got


def test_with_its_parts_off_it_is_fedavg_of_equal_weights() -> None:
    done = toy.simulate(OFF, **CHANGES)
    plain = toy.simulate({"name": "fedavg", "weight": "one"}, **CHANGES)
    assert tree.same(done.state["model"], plain.state["model"]) and tree.same(done.state["start"], plain.state["model"])


def test_the_gradient_is_turned_round() -> None:
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = reversed_gradient(x, torch.tensor(0.3))
    assert torch.allclose(y, x)
    (slope,) = torch.autograd.grad((2 * y).sum(), x)
    assert torch.allclose(slope, torch.full_like(x, -0.6))
    (none,) = torch.autograd.grad(domain_loss(torch.ones(2, 4).double(), x, 1, torch.tensor(0.0)).sum(), x)
    assert not bool(none.any())


def test_distances_by_hand() -> None:
    a, b, w = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[2.0], [2.0]]).double(), torch.ones(2).double()
    width = (2 * (1 + 4 + 4 + 1 + 1 + 0)) / 12 / 4  # of the six pairs
    k = [sum(math.exp(-d / (width * 2**i)) for i in range(5)) for d in (0, 1, 4)]
    want = (2 * k[0] + 2 * k[1]) / 4 + k[0] - 2 * (2 * k[2] + 2 * k[1]) / 4
    assert float(mmd(a, b, w)) == pytest.approx(want)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64) + 1
    ones = torch.ones(6, dtype=torch.float64)
    assert abs(float(mmd(x, x, ones))) < 1e-14
    assert float(mmd(x, y, ones)) == pytest.approx(float(mmd(y, x, ones))) and float(mmd(x, y, ones)) > 0
    padded = torch.cat([x, 99 * torch.ones(2, 3).double()]), torch.cat([ones, torch.zeros(2).double()])
    assert float(mmd(padded[0], y, padded[1])) == pytest.approx(float(mmd(x, y, ones)))


def test_alpha_begins_at_zero_and_the_target_has_no_labels() -> None:
    fed = toy.make_fed(toy.config("fedka", **CHANGES))
    method: Any = fed.method
    assert float(method._alpha(torch.tensor(0.0))) == 0 and 0.98 < float(method._alpha(torch.tensor(1.0))) < 1
    assert set(fed.federation.arrays["y"][fed.federation.public]) == {-1} and set(method.wire.down) == {
        "model", "reference", "domain", "target",
    }  # fmt: skip


def test_the_server_learns_what_most_clients_say() -> None:
    """Of the trained models' answers, of equal numbers the first class; one Adam step of the mean by hand."""
    spec = {**OFF, "voting": True, "vote_steps": 1, "vote_batch": 20, "server_lr": 0.01}
    done = toy.simulate(spec, dtype="float64", rounds=1, **CHANGES)
    fed: Any = done.fed
    alone = toy.simulate(OFF, dtype="float64", rounds=1, kind=Keeps, **CHANGES)
    mean, x, task = alone.state["model"], fed.public()["x"], fed.task
    updates = alone.fed.updates.values()  # type: ignore[attr-defined]
    said = torch.stack([task.apply(tree.add(alone.initial["model"], d), x).argmax(-1) for d in updates])
    votes = torch.stack([(said == c).sum(0) for c in range(task.classes)], 1).argmax(1)
    assert len(votes) == 20 and len(set(votes.tolist())) > 1
    alpha = float(fed.method._alpha(torch.tensor(1.0)))
    slope = torch.func.grad(lambda p: alpha * task.cross_entropy(task.apply(p, x), votes).mean())(mean)
    for n, p in mean.items():  # Adam's first step is lr g / (|g| + eps)
        torch.testing.assert_close(done.state["model"][n], p - 0.01 * slope[n] / (slope[n].abs() + 1e-8))


def test_each_part_changes_the_run_and_what_clients_begin_from() -> None:
    states = [toy.simulate({**OFF, part: True}, **CHANGES).state for part in ("adversarial", "matching", "voting")]
    states.append(toy.simulate({**OFF, "voting": True, "broadcast": "voted"}, **CHANGES).state)
    plain = toy.simulate(OFF, **CHANGES).state
    assert all(not tree.same(s["model"], plain["model"]) for s in states)
    assert tree.same(states[3]["model"], states[3]["start"]) and not tree.same(states[2]["model"], states[2]["start"])
    assert tree.same(states[2]["start"], plain["start"])  # votes reach nobody but the scores
