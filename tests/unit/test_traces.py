"""Traces dealt at random, the constructed ones that come with the package, and traces that would never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed import clock, participation
from rayfed.config.load import READY
from rayfed.errors import ConfigError
from rayfed.launch import model_check
from rayfed.launch.federations import Federations
from tests import toy

DEVICES, STAYS = (str(READY / "traces" / f"constructed-{n}.csv") for n in ("devices", "stays"))


def test_the_constructed_devices_are_those_of_their_rule() -> None:
    """Speeds log-uniform from 2 to 64 steps a second, up-links from 50 kB to 5 MB a second in another order, down-links four times that."""
    i = np.arange(40)
    found = clock.read_trace(DEVICES, 40)
    assert found.speed == pytest.approx(2 * 32 ** (i / 39), abs=5e-4)
    assert found.up == pytest.approx(5e4 * 100 ** (7 * i % 40 / 39), abs=0.5)
    assert found.down == pytest.approx(4 * found.up, rel=1e-5)


def test_the_constructed_stays_are_those_of_their_rule() -> None:
    """96 rounds, quarter hours of a day: one long stay of 24 to 63 of them, that may go over midnight, and two in the middle of the
    rest."""
    want = np.zeros((96, 40), bool)
    for i in range(40):
        length, begin = 24 + 5 * i % 40, 29 * i % 96
        want[(begin + np.arange(length)) % 96, i] = True
        middle = int(begin + length + (96 - length) / 2) % 96
        want[middle : middle + 2, i] = True
    assert (participation.read_trace(STAYS, 40) == want).all()
    assert want.sum(1).min() > 5


def test_at_random_any_number_of_clients_has_one_of_the_files() -> None:
    known = clock.read_trace(DEVICES, 40)
    for clients in (7, 500):
        dealt = clock.read_trace(DEVICES, clients, np.random.default_rng(1))
        at = np.searchsorted(known.speed, dealt.speed)
        assert len(dealt.speed) == clients and (known.up[at] == dealt.up).all()
        assert (clock.read_trace(DEVICES, clients, np.random.default_rng(1)).speed == dealt.speed).all()
        assert (clock.read_trace(DEVICES, clients, np.random.default_rng(2)).speed != dealt.speed).any()
    assert len(set(clock.read_trace(DEVICES, 500, np.random.default_rng(1)).speed)) == 40
    there = participation.read_trace(STAYS, 500, np.random.default_rng(1))
    rows = {tuple(c) for c in participation.read_trace(STAYS, 40).T}
    assert there.shape == (96, 500) and {tuple(c) for c in there.T} == rows


def test_a_run_with_both() -> None:
    done = toy.simulate(
        {"name": "fedbuff", "buffer": 2}, rounds=3, devices={"profile": "trace", "file": DEVICES, "assign": "random"},
        federation={"per_round": 4, "participation": {"kind": "trace", "file": STAYS, "assign": "random"}},
    )  # fmt: skip
    assert float(done.state["now"]) > 0 and all(d.ids for d in done.fed.drawn)


def config(where: Path, section: str, text: str, assign: str = "random") -> Any:
    file = where / "trace.csv"
    file.write_text(text)
    trace = {"file": str(file), "assign": assign}
    if section == "devices":
        return toy.config(devices={"profile": "trace", **trace})
    return toy.config(federation={"participation": {"kind": "trace", **trace}})


@pytest.mark.parametrize(
    ("section", "text", "said"),
    [
        ("devices", "client,speed,up,down\n", "has no client; needed: at least one"),
        ("devices", "client,speed,up,down\n0,1,1,1\n3,1,1,1\n3,2,1,1", "names client 3 more than once"),
        ("devices", "client,speed,up,down\n-1,1,1,1", "of numbers, from 0 and above 0".removeprefix("of ")),
        ("stays", "client,first,last\n", "has no client; needed: at least one"),
        ("stays", "client,first,last\n5,1,1\n5,3,3", "has nobody in round 2; needed: somebody in every round"),
        ("stays", "client,first,last\n5,1,1000000000000", "ends in round 1000000000000, allowed: at most"),
    ],
)
def test_what_cannot_be_dealt_is_refused(section: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, section, text)
    assert any(said in p for p in caught.value.problems), caught.value.problems


def test_a_device_that_never_comes_back_is_refused(tmp_path: Path) -> None:
    lines = ["client,speed,up,down", *(f"{i},{'1e-300' if i == 3 else 1},inf,inf" for i in range(14))]
    made = config(tmp_path, "devices", "\n".join(lines), assign="number")
    with pytest.raises(ConfigError, match=r"client 3 would take .* s for its steps and never be done"):
        Federations().of(made)


def test_a_deadline_that_nobody_meets_because_of_transfers_is_refused() -> None:
    tiers = {"profile": "tiers", "tiers": [{"share": 1.0, "speed": 1e6, "bandwidth": 10.0}]}
    made = toy.config(devices=tiers, failures={"stragglers": {"deadline_s": 20.0}})
    split = Federations().of(made)  # steps alone would do
    asked = model_check.question(made, split)
    assert asked is not None and asked.room == pytest.approx([100.0], rel=1e-4)  # 20 s at 10 bytes a second, both ways
    (said,) = model_check.check_models({"": asked})[""]
    assert said.startswith("failures.stragglers.deadline_s: 20 found, in which no client takes a model of 848 bytes")
    enough = toy.config(devices=tiers, failures={"stragglers": {"deadline_s": 170.0}})
    enough_asked = model_check.question(enough, split)
    assert enough_asked is not None and model_check.check_models({"": enough_asked}) == {"": []}
