"""FedSpeed: without the step uphill it is FedDyn; with it, steps in NumPy; both servers are one where everybody takes part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import methods, tree
from tests import toy

ALL = {"federation": {"per_round": None}}


@pytest.mark.skipif("feddyn" not in methods.names(), reason="compared with feddyn, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_the_step_uphill_it_is_feddyn(executor: str) -> None:
    made = [{"name": "fedspeed", "rho": 0.0, "lam": 0.3}, {"name": "feddyn", "alpha": 0.3}]
    a, b = (toy.simulate(m, rounds=3, executor=executor) for m in made)
    assert tree.same(a.state, b.state) and tree.same(a.clients(), b.clients())


@pytest.mark.parametrize("server", ["all", "active"])
def test_three_rounds_in_numpy(plain: Any, server: str) -> None:
    lam, rho, alpha = 0.4, 0.3, 0.6
    settings = {"name": "fedspeed", "lam": lam, "rho": rho, "alpha": alpha, "server": server}
    done = toy.simulate(settings, rounds=3, **plain.WORK)
    x = plain.vector(done.initial["model"])
    h: dict[int, Any] = {i: np.zeros_like(x) for i in range(12)}
    for draw in done.fed.drawn:
        ys = {}
        for i in draw.ids:
            y, data = x, plain.data(done.fed, i)
            for _ in range(plain.STEPS):
                g1 = plain.gradient(y, *data)
                g2 = plain.gradient(y + rho * g1 / (np.linalg.norm(g1) + 1e-7), *data)
                y = y - plain.LR * ((1 - alpha) * g1 + alpha * g2 + lam * (y - x + h[i]))
            h[i], ys[i] = h[i] + y - x, y
        extra = np.mean(list(h.values()), 0) if server == "all" else np.mean([h[i] for i in draw.ids], 0)
        x = np.mean(list(ys.values()), 0) + extra
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


def test_the_servers_agree_where_everybody_takes_part() -> None:
    one, two = (
        toy.simulate({"name": "fedspeed", "server": s}, rounds=3, dtype="float64", **ALL) for s in ("all", "active")
    )
    gap = float(tree.norm(tree.sub(one.state["model"], two.state["model"])))
    assert gap < 1e-12 < float(tree.norm(tree.sub(one.state["model"], one.initial["model"])))


def test_the_sums_mean_is_the_running_sum_of_updates() -> None:
    """h = sum over rounds of (m / N) times the mean update, which x - h - h^- gives: x^{r+1} = x^r + mean u + h^{r+1}."""
    states = [toy.simulate("fedspeed", rounds=4, until=r, dtype="float64").state for r in (1, 2, 3)]
    first = toy.simulate("fedspeed", rounds=4, until=1, dtype="float64").initial
    h = tree.zeros(first["h"])
    for before, after in zip([first, *states], states, strict=False):
        update = tree.sub(tree.sub(after["model"], before["model"]), after["h"])
        h = tree.add(h, update, 7 / 12)
        assert float(tree.norm(tree.sub(h, after["h"]))) < 1e-12
    assert float(tree.norm(h)) > 0.01
