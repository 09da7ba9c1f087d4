"""FedAsync: one client at a time is local training without end, staleness by hand, mixing in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import clock
from rayfed.clock import Clock
from tests import toy

TIERS = {"devices": {"profile": "tiers", "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 3.0}]}}


def test_one_at_work_and_all_of_its_model_is_training_in_turn(plain: Any) -> None:
    one = {"federation": {"per_round": 1}}
    done = toy.simulate({"name": "fedasync", "alpha": 1.0, "rho": 0.0}, rounds=4, **toy.merge(plain.WORK, one))
    x = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        x = plain.descend(x, *plain.data(done.fed, draw.ids[0]))
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"staleness": "constant"}, [0.5] * 4),
        ({"staleness": "poly", "power": 0.5}, [0.5, 0.5 / 2**0.5, 0.5 / 3**0.5, 0.25]),
        ({"staleness": "hinge", "power": 2.0, "grace": 1}, [0.5, 0.5, 0.5 / 3, 0.1]),
    ],
)
def test_mixing_by_hand(settings: dict[str, Any], want: list[float]) -> None:
    method = toy.make_fed(toy.config({"name": "fedasync", "alpha": 0.5, **settings})).method
    assert [method.mixing(s) for s in range(4)] == pytest.approx(want)


@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_rounds_in_numpy(plain: Any, rho: float) -> None:
    done = toy.simulate({"name": "fedasync", "rho": rho}, rounds=10, **toy.merge(plain.WORK, TIERS))
    fed = toy.make_fed(done.fed.config)
    x = plain.vector(done.initial["model"])
    versions, ages = [x], []
    state: Any = {"model": done.initial["model"], **clock.start(12)}
    for r in range(1, 11):
        fed.begin(r)
        at = Clock(state, fed, fed.durations())
        ((client, v),) = at.replies(1).items()
        old, data = versions[v], plain.data(fed, client)
        y = old
        for _ in range(plain.STEPS):
            y = y - plain.LR * (plain.gradient(y, *data) + rho * (y - old))
        a = 0.6 / (1 + r - 1 - v) ** 0.5
        x = (1 - a) * x + a * y
        versions.append(x)
        ages.append(r - 1 - v)
        state = at.after(done.initial["model"])
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    assert max(ages) > 3
