"""Devices by key and by trace, the simulated time of rounds, deadlines, and the order in which replies come."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import clock, tree
from rayfed.clock import Clock
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from tests import toy

TIERS = {
    "profile": "tiers",
    "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 2.0, "bandwidth": 1000.0}],
}
SPREAD = {"profile": "lognormal", "sigma": 1.0, "speed": 10.0}


def devices_of(d: Any, clients: int = 200, seed: int = 1) -> clock.Devices:
    made = clock.devices(toy.config(seed=seed, devices=d), clients)
    assert made is not None
    return made


def test_profiles_follow_from_the_seed() -> None:
    assert clock.devices(toy.config(), 14) is None
    tiers, spread = devices_of(TIERS), devices_of({**SPREAD, "bandwidth": 500.0})
    assert sorted(set(tiers.speed)) == [2.0, 10.0] and (tiers.speed == 2).sum() == 100
    assert (np.isinf(tiers.up) == (tiers.speed == 10)).all() and (tiers.down == tiers.up).all()
    assert tiers.memory is not None and np.isinf(tiers.memory).all() and spread.memory is None
    for of, median in zip((spread.speed, spread.up, spread.down), (10.0, 500.0, 500.0), strict=True):
        assert np.median(of) == pytest.approx(median, rel=0.3) and np.log(of).std() == pytest.approx(1.0, rel=0.15)
    assert (devices_of(TIERS).speed == tiers.speed).all() and (devices_of(TIERS, seed=2).speed != tiers.speed).any()
    assert (devices_of({**SPREAD, "sigma": 0.0}).speed == 10).all()


def test_a_visit_takes_its_steps_and_its_bytes() -> None:
    of = clock.Devices(np.array([2.0, 4.0]), np.array([10.0, math.inf]), np.array([20.0, math.inf]))
    assert of.seconds([0, 1], [6, 6], 30, 40).tolist() == [3 + 3 + 2, 1.5]


def test_durations_are_the_configs_steps_and_a_model_each_way() -> None:
    fed = toy.make_fed(toy.config(devices=TIERS))
    took = fed.durations()
    for i in range(12):
        steps, band = 2 * math.ceil(len(fed.federation.train[i]) / 8), fed._devices.up[i]
        assert took[i] == pytest.approx(steps / fed._devices.speed[i] + 2 * 212 * 4 / band)
    assert (toy.make_fed(toy.config()).durations() == 1).all()
    assert (fed.durations(np.arange(12)) <= took + 12 / 2).all()


def trace(where: Path, text: str) -> dict[str, Any]:
    file = where / "devices.csv"
    file.write_text(text)
    return {"profile": "trace", "file": str(file)}


def test_a_trace_of_devices(tmp_path: Path) -> None:
    lines = ["client,speed,up,down", *(f"{i},{i + 1},{10 * i + 1},inf" for i in reversed(range(14)))]
    found = devices_of(trace(tmp_path, "\n".join(lines)), 14)
    assert found.speed.tolist() == list(range(1, 15)) and found.up[3] == 31 and np.isinf(found.down).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"profile": "tiers"}, "devices.tiers: missing"),
        ({"profile": "teirs"}, "devices.profile: 'teirs' found (did you mean 'tiers'?)"),
        ({"profile": "tiers", "tiers": [{"share": 0.5, "speed": 1.0}]}, "the shares sum to 0.5, allowed: 1"),
        ({"profile": "lognormal", "tiers": []}, "devices.tiers: unknown key of kind lognormal"),
        ({"profile": "lognormal", "speed": 0.0}, "devices.speed: 0.0 found"),
        ({"profile": "trace", "file": "nowhere.csv"}, "devices.file: 'nowhere.csv' cannot be read"),
        ({"kind": "tiers"}, "devices.profile: missing, allowed: lognormal, none, tiers, trace"),
    ],
)
def test_what_is_wrong_with_devices_is_said(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(devices=change)
    assert any(said in p for p in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client,speed,up,down\n0,1,1,1", "does not name client 1, 2, 3, 4, 5 ... once"),
        ("client,speed,up,down\n0,1,1,1\n0,1,1,1", "does not name client 0, 1, 2, 3, 4 ... once"),
        ("client,speed,up,down\n0,-1,1,1", "line 2 is '0,-1,1,1'"),
        ("client,speed,up,down\n0,nan,1,1", "line 2 is '0,nan,1,1'"),
        ("client,sped,up,down\n0,1,1,1", "begins with 'sped' (did you mean 'speed'?)"),
    ],
)
def test_a_trace_of_devices_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(devices=trace(tmp_path, text))
    assert any(said in p and p.startswith("devices.file") for p in caught.value.problems), caught.value.problems


# -- the time of rounds ------------------------------------------------------------------------------------------------


def simulated(ran: toy.Ran) -> list[float]:
    return [row["time/simulated"] for row in ran.folder.metrics().to_pylist()]


def test_a_round_waits_for_its_slowest_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    more = {"devices": TIERS}
    whole = toy.run_folder("feddyn", tmp_path / "whole", rounds=4, **more)
    toy.run_folder("feddyn", tmp_path / "part", rounds=4, stop_after=2, **more)
    again = toy.run_folder("feddyn", tmp_path / "part", rounds=4, resume=True, **more)
    assert simulated(again) == simulated(whole)
    done, total = toy.simulate("feddyn", rounds=4, **more), 0.0
    took = done.fed.durations()
    for draw, at in zip(done.fed.drawn, simulated(whole), strict=True):
        total += max(took[c] for c in draw.ids)
        assert at == pytest.approx(total)
    bare = toy.run_folder("feddyn", tmp_path / "bare", rounds=4)
    assert tree.same(bare.state, whole.state)  # time by itself changes nothing
    assert "time/simulated" not in bare.folder.metrics().column_names


def test_asks_of_one_round_add_up() -> None:
    done = toy.simulate("fedamd", rounds=1, devices=TIERS)  # everybody's gradient, then miners, then anchors
    took, band = done.fed.durations(), done.fed._devices.up
    anchors, miners = done.fed.method._roles(done.fed.drawn[0].ids, done.fed)
    model = 212 * 4
    passes = max(2 * model / band[i] for i in range(12))
    assert anchors and miners
    # who has the model already is not sent it again: miners get g, anchors nothing
    want = passes + max(took[i] for i in miners) + max(model / band[i] for i in anchors)
    assert done.fed.elapsed == pytest.approx(want)


def test_a_deadline_leaves_the_slow_ones_out() -> None:
    fed = toy.make_fed(toy.config(devices=TIERS, failures={"stragglers": {"deadline_s": 2.0}}))
    plain, took = toy.make_fed(toy.config(devices=TIERS)), fed.durations()
    for r in range(1, 6):
        fed.begin(r), plain.begin(r)
        drawn = plain.sample()
        assert fed.sample() == tuple(c for c in drawn if took[c] <= 2.0)
        assert fed.elapsed == (2.0 if max(took[c] for c in drawn) > 2.0 else 0.0)  # it waited in vain


def test_poisson_draws_are_cut_by_the_deadline_alone() -> None:
    poisson = {"federation": {"per_round": 3, "participation": {"kind": "poisson"}}, "devices": TIERS}
    fed = toy.make_fed(toy.config(failures={"stragglers": {"deadline_s": 1e6}}, **poisson))
    plain, sizes = toy.make_fed(toy.config(**poisson)), set()
    for r in range(1, 20):
        fed.begin(r), plain.begin(r)
        sizes.add(len(drawn := fed.sample()))
        assert drawn == plain.sample()
    assert max(sizes) > 3


def test_the_fastest_of_more_than_are_needed() -> None:
    fed = toy.make_fed(toy.config(devices=SPREAD, failures={"stragglers": {"over_select": 3}}))
    took, sizes = fed.durations(), set()
    for r in range(1, 6):
        fed.begin(r)
        drawn = fed._draw(None, None)
        fed.begin(r)
        kept = fed.sample()
        assert len(drawn) == 10 and len(kept) == 7 and set(kept) <= set(drawn)
        assert max(took[c] for c in kept) <= min(took[c] for c in set(drawn) - set(kept))
        assert fed.sample(4) and len(fed.sample(4)) == 4  # who asks for a number gets it
        sizes.add(kept)
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("late", "devices", "said"),
    [
        (
            {"deadline_s": 1.0},
            {"profile": "none"},
            "failures.stragglers.deadline_s: 1.0 found, but nothing reads it with devices.profile: none",
        ),
        ({"over_select": 2}, {"profile": "none"}, "failures.stragglers.over_select: 2 found"),
        (
            {"over_select": 6},
            SPREAD,
            "failures.stragglers.over_select: 6 found, allowed: at most 5 (12 clients, 7 asked)",
        ),
        ({"dedline_s": 6}, SPREAD, "failures.stragglers.dedline_s: unknown key (did you mean 'deadline_s'?)"),
    ],
)
def test_what_is_wrong_with_deadlines_is_said(late: dict[str, Any], devices: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(devices=devices, failures={"stragglers": late})
    assert any(said in p for p in caught.value.problems), caught.value.problems


def test_a_deadline_that_nobody_meets_is_refused_before_the_start() -> None:
    config = toy.config(devices=SPREAD, failures={"stragglers": {"deadline_s": 1e-4}})
    with pytest.raises(ConfigError, match=r"deadline_s: 0.0001 found, the fastest client's steps take"):
        Federations().of(config)
    assert Federations().of(toy.config(devices=SPREAD, failures={"stragglers": {"deadline_s": 9.0}}))


# -- who replies when --------------------------------------------------------------------------------------------------


def begun(durations: Any, per_round: int | None = None, **state: Any) -> tuple[Clock, toy.ToyFed]:
    fed = toy.make_fed(toy.config(federation={"per_round": per_round}))
    fed.begin(1)
    return Clock({"model": {}, **clock.start(12), **state}, fed, np.asarray(durations, float)), fed


def test_replies_come_in_order_and_ties_by_number() -> None:
    at, _ = begun([3, 1, 2, 1, 1, 5, 6, 7, 8, 9, 10, 11])
    assert at.replies(2, refill=False) == {1: 0, 3: 0} and at.now == 1
    assert at.replies(2, refill=False) == {4: 0, 2: 0} and at.now == 2
    assert list(at.replies(99, refill=False)) == [0, 5, 6, 7, 8, 9, 10, 11] and at.now == 11
    assert at.replies(1) == {}  # nobody is at work: no waiting for ever


def test_a_place_is_filled_at_once_or_after_the_step() -> None:
    for refill in (True, False):
        at, fed = begun(np.arange(1, 13), per_round=4)
        came = at.replies(3, refill)
        working = np.flatnonzero(at.at_work).tolist()
        assert len(came) == 3 and len(at.begun) == len(set(at.begun)) == (6 if refill else 4)
        assert len(working) == (3 if refill else 1) and not set(working) & came.keys()
        assert [d.where is None for d in fed.drawn] == [True] + [False] * (len(fed.drawn) - 1)


def test_versions_are_kept_as_long_as_somebody_works_on_them() -> None:
    fed, took = toy.make_fed(toy.config(federation={"per_round": None})), np.array([1.0] * 6 + [2.5] * 6)
    state: Any = {"model": {"w": torch.tensor(0.0)}, **clock.start(12)}
    kept, ages = [], []
    for r in range(1, 6):
        fed.begin(r)
        at = Clock(state, fed, took)
        came = at.replies(6)
        ages.append([(float(m["w"]), stale, len(ids)) for m, stale, ids in at.versions(came)])
        state = at.after({"w": torch.tensor(float(r))})
        kept.append(list(state["models"]))
        assert fed.elapsed == [1.0, 1.0, 0.5, 0.5, 1.0][r - 1]
    # replies at 1, 2, 2.5 (of version 0), 3, 4
    assert ages == [[(0.0, 0, 6)], [(1.0, 0, 6)], [(0.0, 2, 6)], [(2.0, 1, 6)], [(4.0, 0, 6)]]
    assert kept == [["0"], ["0"], ["2"], ["3"], ["3"]] and float(state["now"]) == 4.0


def test_nothing_is_lost_and_nothing_comes_twice() -> None:
    """Visits begun are those that came and those at work, whatever happens in between."""
    fed = toy.make_fed(toy.config(federation={"per_round": 5}, devices=SPREAD))
    took = fed.durations()
    state: Any = {"model": {"w": torch.zeros(())}, **clock.start(12)}
    sent, got = [0] * 12, [0] * 12
    for r in range(1, 40):
        fed.begin(r)
        at = Clock(state, fed, took)
        came = at.replies(2) if r % 3 else at.until(at.now + 0.7)
        for c in at.begun:
            sent[c] += 1
        for c in came:
            got[c] += 1
        state = at.after({"w": torch.tensor(float(r))} if came else None)
        assert (np.array(sent) - got == at.at_work).all() and at.at_work.sum() <= 5
    assert min(sent) > 0
