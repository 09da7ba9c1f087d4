"""FedAMD: one step of a miner is lr g, anchors do not move the model, one client alternating descends its own gradient, NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy
from tests.toy import ToyFed

ALONE = {
    "federation": {"clients": 1, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}},
    "local": {"batch_size": 512},
}


@pytest.mark.parametrize("settings", [{}, {"everyone_first": False}, {"period": 2, "server_lr": 0.5}])
def test_rounds_in_numpy(plain: Any, settings: dict[str, Any]) -> None:
    done = toy.simulate({"name": "fedamd", **settings}, rounds=4, **plain.WORK)
    method = done.fed.method
    x = plain.vector(done.initial["model"])
    v = np.zeros((12, len(x)))
    for r, draw in enumerate(done.fed.drawn, 1):
        if r == 1 and settings.get("everyone_first", True):
            v = np.stack([plain.gradient(x, *plain.data(done.fed, i)) for i in range(12)])
        done.fed.begin(r)
        anchors, miners = method._roles(draw.ids, done.fed)
        assert sorted([*anchors, *miners]) == list(draw.ids)
        g, updates = v.mean(0), []
        for i in miners:
            data, y, last, d = plain.data(done.fed, i), x, x, g
            for _ in range(plain.STEPS):
                d = d + plain.gradient(y, *data) - plain.gradient(last, *data)
                y, last = y - plain.LR * d, y
            updates.append(y - x)
        for i in anchors:
            v[i] = plain.gradient(x, *plain.data(done.fed, i))
        x = x + settings.get("server_lr", 1.0) * np.mean(updates, 0) if updates else x
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    np.testing.assert_allclose(plain.vector(done.state["g"]), v.mean(0), atol=1e-12)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_miners_first_step_is_lr_g(executor: str) -> None:
    """Whatever its data are, to the bit of the optimizer's own step."""
    one = {"local": {"steps": 1, "epochs": None}, "executor": executor}
    done = toy.simulate("fedamd", rounds=2, **one)
    done.fed.begin(3)
    shared = {"model": done.state["model"], "g": done.state["g"]}
    got = done.fed.ask(done.fed.method.train, range(5), shared=shared, keep="delta").gather("delta")
    want = tree.sub(tree.add(shared["model"], shared["g"], -0.1), shared["model"])
    assert all(float(tree.norm(tree.sub(d, want))) < 1e-7 for d in got.values()) and float(tree.norm(want)) > 1e-3


def test_rounds_of_anchors_or_of_miners_alone() -> None:
    settings = {"name": "fedamd", "period": 2}
    one, two = (toy.simulate(settings, rounds=2, until=r) for r in (1, 2))
    assert tree.same(one.state["model"], one.initial["model"]) and not tree.same(one.state["g"], one.initial["g"])
    assert tree.same(one.state["g"], two.state["g"]) and tree.same(one.clients(), two.clients())
    assert not tree.same(one.state["model"], two.state["model"])


def test_one_client_descends_its_own_gradient(plain: Any) -> None:
    """Whole batches, anchor and miner in turn: the sum of differences telescopes, so that each step is a gradient step."""
    done = toy.simulate({"name": "fedamd", "period": 2}, rounds=2, **toy.merge(plain.WORK, ALONE))
    x = plain.vector(done.initial["model"])
    want = plain.descend(x, *plain.data(done.fed, 0))
    np.testing.assert_allclose(plain.vector(done.state["model"]), want, atol=1e-12)


def test_the_first_pass_is_paid_for() -> None:
    first, later = (toy.simulate({"name": "fedamd", "everyone_first": f}, rounds=1).rows[0] for f in (True, False))
    assert first["visits"] == later["visits"] + 12 and first["bytes/up"] == later["bytes/up"] + 12 * 212 * 4


class Away(ToyFed):
    """In the first round only clients 0 to 3 reply to the first ask."""

    def ask(self, visit: Any, to: Any, **how: Any) -> Any:
        return super().ask(visit, [c for c in to if c < 4] if self.round == 1 and len(to) == 12 else to, **how)


def test_those_who_are_missing_are_asked_again(plain: Any) -> None:
    """g is the mean of everyone's gradient as soon as all have replied; nobody is asked a third time."""
    settings = {"name": "fedamd", "anchors": 1e-9}  # miners alone
    runs = [toy.simulate(settings, kind=Away, rounds=3, until=r, **plain.WORK) for r in (1, 2, 3)]
    points = [plain.vector(r.state["model"]) for r in (runs[0], runs[0])]
    points[0] = plain.vector(runs[0].initial["model"])
    v = [plain.gradient(points[int(i >= 4)], *plain.data(runs[0].fed, i)) for i in range(12)]
    assert runs[0].state["begun"].tolist() == [1.0] * 4 + [0.0] * 8 and runs[1].state["begun"].all()
    for run in runs[1:]:
        np.testing.assert_allclose(plain.vector(run.state["g"]), np.mean(v, 0), atol=1e-12)
    assert runs[2].rows[2]["visits"] == runs[2].rows[1]["visits"] - 8


@pytest.mark.parametrize("local", [{"optimizer": {"momentum": 0.9}}, {"schedule": {"within": "linear"}}])
def test_only_plain_steps(local: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="fedamd"):
        toy.config("fedamd", local=local)
