"""FedFix: long ticks are FedAvg's bits, counts times weights are everybody's share, ticks by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import clock, methods, tree
from rayfed.clock import Clock
from rayfed.errors import ConfigError
from tests import toy

ALL = {"federation": {"per_round": None}}
SPREAD = {**ALL, "devices": {"profile": "lognormal", "sigma": 0.8}}


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("devices", [{}, SPREAD])
def test_long_ticks_are_fedavg_to_the_bit(executor: str, devices: Any) -> None:
    fix = toy.simulate({"name": "fedfix", "period": 100.0}, rounds=3, executor=executor, **toy.merge(ALL, devices))
    avg = toy.simulate("fedavg", rounds=3, executor=executor, **ALL)
    assert tree.same(fix.state["model"], avg.state["model"])
    assert all(row["staleness/mean"] == 0 for row in fix.rows)


def test_counts_times_weights_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six durations and a tick of 0.3: ceil 4, 3, 3, 2, 2, 1, and in 12 ticks everybody comes 12 / ceil times."""
    took = np.array([1, 0.84, 0.68, 0.52, 0.36, 0.2])
    fed = toy.make_fed(toy.config(federation={"clients": 6, "per_round": None, "holdout": {"kind": "none"}}))
    state: Any = {"model": {"w": torch.zeros(())}, **clock.start(6)}
    counts = np.zeros(6, int)
    for r in range(1, 13):
        fed.begin(r)
        at = Clock(state, fed, took)
        for c in (came := at.until(at.now + 0.3)):
            counts[c] += 1
        state = at.after({"w": torch.zeros(())} if came else None)
    assert (counts * np.array([4, 3, 3, 2, 2, 1]) == 12).all()


@pytest.mark.parametrize("settings", [{}, {"weights": "plain", "weight": "one", "server_lr": 0.5}])
def test_ticks_in_numpy(plain: Any, settings: dict[str, Any]) -> None:
    period = 0.15
    done = toy.simulate({"name": "fedfix", "period": period, **settings}, rounds=7, **toy.merge(plain.WORK, SPREAD))
    fed, x = done.fed, plain.vector(done.initial["model"])
    took = fed.durations()
    sizes = np.array([len(plain.data(fed, i)[1]) for i in range(12)], float)
    p = np.full(12, 1 / 12) if "weight" in settings else sizes / sizes.sum()
    d = p if "weights" in settings else np.ceil(took / period) * p
    due, sent, seen = took.copy(), [x] * 12, []
    for tick in range(1, 8):
        here = np.flatnonzero(due <= tick * period + 1e-9)
        old = [sent[c] for c in here]
        moved = [d[c] * (plain.descend(o, *plain.data(fed, c)) - o) for c, o in zip(here, old, strict=True)]
        x = x + settings.get("server_lr", 1.0) * np.sum(moved, 0) if len(here) else x
        seen.append(len(here))
        for c in here:
            due[c], sent[c] = tick * period + took[c], x
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    assert len(set(seen)) > 2 and float(done.state["now"]) == pytest.approx(7 * period)


def test_a_tick_without_replies_changes_nothing_but_the_time() -> None:
    done = toy.simulate({"name": "fedfix", "period": 0.25}, rounds=3, **ALL)  # visits take a second
    assert tree.same(done.state["model"], done.initial["model"]) and done.state["models"] == {}
    assert float(done.state["now"]) == 0.75 and int(done.state["version"]) == 0 and done.rows[0]["visits"] == 0
    four = toy.simulate({"name": "fedfix", "period": 0.25}, rounds=4, **ALL)
    assert int(four.state["version"]) == 1 and four.rows[3]["visits"] == 12


def test_all_clients_are_at_work() -> None:
    with pytest.raises(
        ConfigError, match=r"federation.per_round: 7 found, fedfix has all 12 clients at work; allowed: null"
    ):
        toy.config("fedfix")
