"""FedBuff: equal speeds give FedAvg's bits, unequal ones the recursion in NumPy, stale updates count less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed import clock, methods, tree
from rayfed.clock import Clock
from rayfed.errors import ConfigError
from tests import toy

TIERS = {"devices": {"profile": "tiers", "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 3.0}]}}


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("restart", ["at_once", "together"])
def test_equal_speeds_are_fedavg_to_the_bit(executor: str, restart: str) -> None:
    settings = {"name": "fedbuff", "buffer": 7, "weight": "examples", "restart": restart}
    buff, avg = (toy.simulate(m, rounds=4, executor=executor) for m in (settings, "fedavg"))
    assert tree.same(buff.state["model"], avg.state["model"]) and buff.state["models"] == {}
    assert [d.ids for d in buff.fed.drawn] == [d.ids for d in avg.fed.drawn]
    for row, other in zip(buff.rows, avg.rows, strict=True):
        assert row.pop("staleness/mean") == 0
        assert {**row, "bytes/up": 0} == {**other, "bytes/up": 0}  # FedAvg's clients also send n_i


@pytest.mark.parametrize(
    "settings", [{}, {"buffer": 2, "staleness": "none", "weight": "examples", "restart": "together"}]
)
def test_rounds_in_numpy(plain: Any, settings: dict[str, Any]) -> None:
    """Every reply is computed from the version that it was sent, and added to the present model."""
    done = toy.simulate({"name": "fedbuff", "server_lr": 0.8, **settings}, rounds=8, **toy.merge(plain.WORK, TIERS))
    fed = toy.make_fed(done.fed.config)
    x = plain.vector(done.initial["model"])
    versions, ages = [x], []
    state: Any = {"model": done.initial["model"], **clock.start(12)}
    sizes = np.array([len(plain.data(fed, i)[1]) for i in range(12)], float)
    for r in range(1, 9):
        fed.begin(r)
        at = Clock(state, fed, fed.durations())
        came = at.replies(settings.get("buffer", 3), refill="restart" not in settings)
        top = bottom = 0.0
        for c, v in came.items():
            stale, old = r - 1 - v, versions[v]
            a = sizes[c] if "weight" in settings else 1.0
            s = 1.0 if "staleness" in settings else 1 / np.sqrt(1 + stale)
            top, bottom = top + s * a * (plain.descend(old, *plain.data(fed, c)) - old), bottom + a
            ages.append(stale)
        x = x + 0.8 * top / bottom
        versions.append(x)
        state = at.after(done.initial["model"])
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    assert max(ages) > 1 and float(done.state["now"]) == float(state["now"])


def test_a_killed_run_goes_on_as_it_was(tmp_path: Path) -> None:
    whole = toy.run_folder("fedbuff", tmp_path / "whole", rounds=6, **TIERS)
    toy.run_folder("fedbuff", tmp_path / "part", rounds=6, stop_after=3, **TIERS)
    again = toy.run_folder("fedbuff", tmp_path / "part", rounds=6, resume=True, **TIERS)
    assert tree.same(again.state, whole.state) and again.rows == whole.rows
    times = [[r["time/simulated"] for r in x.folder.metrics().to_pylist()] for x in (again, whole)]
    assert times[0] == times[1] and times[0][-1] == pytest.approx(float(whole.state["now"]))


def test_workers_and_lost_calls_change_nothing() -> None:
    plain = toy.simulate("fedbuff", rounds=5, executor="vmap", **TIERS)
    for pool in (toy.SimPool(3, 1), toy.SimPool(2, 3, kill_at=range(0, 1000, 2))):
        other = toy.simulate("fedbuff", rounds=5, executor="vmap", pool=pool, **TIERS)
        assert tree.same(plain.state, other.state)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ({"name": "fedbuff", "buffer": 8}, {}, "method.buffer: 8 found, allowed: at most 7"),
        ("fedbuff", {**TIERS, "failures": {"stragglers": {"deadline_s": 9.0}}}, "which waits for nobody"),
    ],
)
def test_what_cannot_work_is_refused(method: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(method, **changes)
    assert any(said in p for p in caught.value.problems), caught.value.problems
