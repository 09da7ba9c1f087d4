"""Whom a round asks by `federation.select`: the fastest, fewest turns, longest wait; the same after a resume, on any pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import selection, tree
from rayfed.errors import ConfigError
from rayfed.storage import timeline
from tests import toy

SPREAD = {"profile": "lognormal", "sigma": 1.0, "speed": 10.0}
COMES = {"kind": "bernoulli", "chance": 0.6}


def drawn(kind: str, rounds: int = 8, **changes: Any) -> list[tuple[int, ...]]:
    f = {"per_round": 5, "select": kind, **changes.pop("federation", {})}
    return [d.ids for d in toy.simulate(rounds=rounds, federation=f, devices=SPREAD, **changes).fed.drawn]


def test_the_fastest_of_those_who_are_there() -> None:
    fed = toy.make_fed(
        toy.config(devices=SPREAD, federation={"per_round": 5, "select": "fastest", "participation": COMES})
    )
    took = fed.durations()
    for r in range(1, 6):
        fed.begin(r)
        here = sorted(fed.available(), key=lambda c: took[c])
        assert fed.sample() == tuple(sorted(here[:5]))
        assert fed.sample(2, where=[0, 3, 7]) == tuple(
            c for c in (0, 3, 7) if c in sorted(set(here) & {0, 3, 7}, key=lambda c: took[c])[:2]
        )


def test_fair_gives_everybody_as_many_turns() -> None:
    counts = np.bincount(np.concatenate(drawn("fair", 12)), minlength=12)
    assert (counts == 5).all()
    firsts = drawn("fair", 3)
    assert len(set(firsts[0]) & set(firsts[1])) == 0 and drawn("fair", 3, seed=2) != firsts
    uneven = np.bincount(np.concatenate(drawn("random", 12)), minlength=12)
    assert np.ptp(uneven) > 0


def test_oldest_waits_for_nobody_longer_than_for_another() -> None:
    last = np.zeros(12, int)
    for r, ids in enumerate(drawn("oldest", 12, federation={"participation": COMES}), 1):
        fed = toy.make_fed(toy.config(federation={"per_round": 5, "participation": COMES}))
        fed.begin(r)
        here = np.array(fed.available())
        left = np.setdiff1d(here, ids)
        assert not len(left) or not len(ids) or last[list(ids)].max() <= last[left].min()
        last[list(ids)] = r


def test_by_hand() -> None:
    turns = selection.after({}, 4, np.array([1, 2]), 1)
    turns = selection.after(turns, 4, np.array([2]), 3)
    assert turns["count"].tolist() == [0, 1, 2, 0] and turns["last"].tolist() == [0, 1, 3, 0]
    everybody, rng = np.arange(4), np.random.default_rng(0)
    assert selection.choose("fair", everybody, 3, rng, np.ones(4), turns).tolist() == [0, 1, 3]
    assert selection.choose("oldest", np.array([1, 2]), 1, rng, np.ones(4), turns).tolist() == [1]
    assert selection.choose("fastest", everybody, 2, rng, np.array([3.0, 1.0, 2.0, 9.0]), {}).tolist() == [1, 2]


@pytest.mark.parametrize("method", ["fedavg", {"name": "fedbuff", "buffer": 2}])
def test_a_resumed_run_goes_on_with_the_same_turns(method: Any, tmp_path: Path) -> None:
    more = {"federation": {"per_round": 4, "select": "oldest", "participation": COMES}, "devices": SPREAD}
    whole = toy.run_folder(method, tmp_path / "whole", rounds=4, **more)
    toy.run_folder(method, tmp_path / "part", rounds=4, stop_after=2, **more)
    again = toy.run_folder(method, tmp_path / "part", rounds=4, resume=True, **more)
    assert tree.same(again.state, whole.state) and again.rows == whole.rows
    files = [{n: x.tolist() for n, x in timeline.read(ran.folder.path).items()} for ran in (again, whole)]
    assert files[0] == files[1] and len(files[0]["client"]) > 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation": {"select": "quickest"}}, "federation.select: 'quickest' found"),
        ({"federation": {"select": "fastest"}}, "nothing reads it with devices.profile: none"),
        ({"federation": {"select": "fair", "per_round": None}}, "nothing reads it with federation.per_round"),
        (
            {"federation": {"select": "oldest", "participation": {"kind": "poisson"}}},
            "draws a round's clients by itself",
        ),
        (
            {"federation": {"select": "fair"}, "method": {"name": "fedstale"}},
            "nobody knows a client's chance to be asked",
        ),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], said: str) -> None:
    method = changes.pop("method", "fedavg")
    with pytest.raises(ConfigError) as caught:
        toy.config(method, **changes)
    assert any(said in p for p in caught.value.problems), caught.value.problems


def test_turns_are_whole_numbers_that_a_snapshot_holds() -> None:
    done = toy.simulate(rounds=2, federation={"per_round": 5, "select": "fair"})
    turns = done.fed.dispatch.engine.get(selection.TURNS)
    assert turns["count"].dtype == torch.int64 and int(turns["count"].sum()) == 10
