"""Clients that come by themselves: a function of seed and round, with the chances that are said, the same for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, participation, tree
from rayfed.errors import ConfigError, FailsAgain
from tests import toy

KINDS: dict[str, dict[str, Any]] = {
    "bernoulli": {"kind": "bernoulli", "chance": 0.3},
    "markov": {"kind": "markov", "chance": 0.3, "switch": 0.1},
    "periodic": {"kind": "periodic", "chance": 0.3, "period": 10},
}
EVERYBODY = {"per_round": None}


def fed_of(p: dict[str, Any], method: Any = "fedavg", seed: int = 1, **federation: Any) -> toy.ToyFed:
    f = {**EVERYBODY, "participation": p, **federation}
    return toy.make_fed(toy.config(method, seed=seed, federation=f))


def there(fed: toy.ToyFed, rounds: Any) -> np.ndarray:
    """Who is available, (rounds, 12) bool."""
    out = np.zeros((len(rounds), fed.population), bool)
    for i, r in enumerate(rounds):
        fed.begin(r)
        out[i, list(fed.available())] = True
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_there_follows_from_seed_and_round(kind: str) -> None:
    fed = fed_of(KINDS[kind])
    found = there(fed, range(1, 41))
    assert (there(fed_of(KINDS[kind], "scaffold"), range(1, 41)) == found).all()
    assert (there(fed_of(KINDS[kind], seed=2), range(1, 41)) != found).any()
    # a resumed run begins in the middle, and a round may be computed twice
    assert (there(fed_of(KINDS[kind]), [7, 8, 8, 3, 40]) == found[[6, 7, 7, 2, 39]]).all()
    fed.begin(5)
    assert fed.sample() == fed.available() == tuple(np.flatnonzero(found[4]))


@pytest.mark.parametrize("kind", KINDS)
def test_chances_are_shares_of_rounds(kind: str) -> None:
    p = {**KINDS[kind], "chances": "labels", "chance": 0.4, "least": 0.05, "alpha": 0.5}
    fed = fed_of(p)
    share, chance = there(fed, range(1, 4001)).mean(0), fed.chances().numpy()
    if kind == "periodic":
        assert share == pytest.approx(np.where(chance < 1, np.clip(np.rint(10 * chance), 1, 9) / 10, 1.0))
    else:  # a stay of 1 / 0.1 rounds leaves about a tenth of the draws of a chain
        assert np.abs(share - chance).max() < (0.04 if kind == "bernoulli" else 0.12)
    assert chance.min() >= 0.05 and chance.max() <= 1 and np.ptp(chance) > 0.1


def test_a_chain_stays_where_it_is() -> None:
    found = there(fed_of({"kind": "markov", "chance": 0.5, "switch": 0.02}), range(1, 1001))
    assert 0 < (found[1:] != found[:-1]).mean() < 0.03  # of independent draws, half would differ
    always = there(fed_of({"kind": "markov", "chance": 1.0}), range(1, 20))
    assert always.all()


def test_a_period_is_one_stay() -> None:
    found = there(fed_of({"kind": "periodic", "chance": 0.3, "period": 10}), range(1, 31))
    assert (found.sum(0) == 9).all() and (found[:10] == found[10:20]).all()
    assert ((found & ~np.roll(found, 1, 0)).sum(0) == 3).all()  # it comes once in each period
    assert len({tuple(c) for c in found.T}) > 4  # at phases of their own


def test_chances_by_labels_are_the_formulas() -> None:
    fed = fed_of({"kind": "bernoulli", "chance": 0.2, "chances": "labels", "alpha": 0.3, "least": 0.04})
    kappa = keys.numpy(keys.key(1, 0, -1, "weights of classes")).dirichlet([0.3] * 4)
    for i, p in enumerate(fed.chances().tolist()):
        counts = fed.federation.class_counts[i]
        assert p == pytest.approx(min(1.0, max(0.04, 0.2 * 4 * float(counts @ kappa) / counts.sum())), rel=1e-12)


def test_chances_by_planted_group() -> None:
    fed = fed_of({"kind": "bernoulli", "chances": [1.0, 0.5, 0.1]})
    group = fed.planted(range(12)).numpy()
    assert (fed.chances().numpy() == np.array([1.0, 0.5, 0.1])[group]).all()
    assert there(fed, range(1, 30))[:, group == 0].all()


def test_the_engines_own_draws_have_chances_too() -> None:
    for p, per_round, chance in (
        ("uniform", 3, 3 / 12),
        ("poisson", 6, 0.5),
        ("cyclic", 4, 4 / 12),
        ("uniform", None, 1.0),
    ):
        fed = fed_of({"kind": p}, per_round=per_round)
        fed.begin(1)
        assert torch.equal(fed.chances(), torch.full((12,), chance, dtype=torch.float64))
        assert fed.available() == tuple(range(12))
    work = {"kind": "uniform", "stragglers": 0.5, "late": "drop"}
    fed = toy.make_fed(toy.config(federation=EVERYBODY, local={"work": work}))
    fed.begin(1)
    assert fed.chances().tolist() == [0.5] * 12


def test_the_chance_of_who_comes_periodically_is_the_share_of_rounds() -> None:
    fed = fed_of({"kind": "periodic", "chance": 0.33, "period": 4})
    assert fed.chances().tolist() == [0.25] * 12 == there(fed, range(1, 5)).mean(0).tolist()


@pytest.mark.parametrize("late", [{"deadline_s": 9.0}, {"over_select": 2}])
def test_nobody_knows_the_chance_to_be_in_time(late: dict[str, Any]) -> None:
    devices = {"profile": "lognormal", "sigma": 1.0}
    fed = toy.make_fed(toy.config(federation={"per_round": 3}, devices=devices, failures={"stragglers": late}))
    with pytest.raises(FailsAgain, match=rf"failures\.stragglers\.{next(iter(late))}: "):
        fed.chances()


def test_of_those_who_are_there_a_round_asks_so_many() -> None:
    fed = fed_of(KINDS["bernoulli"], per_round=2)
    sizes = set()
    for r in range(1, 30):
        fed.begin(r)
        drawn, found = fed.sample(), set(fed.available())
        assert set(drawn) <= found and len(drawn) == min(2, len(found))
        assert set(fed.sample(5, where=(1, 2, 3))) <= found & {1, 2, 3}
        sizes.add(len(drawn))
    assert sizes == {0, 1, 2} or sizes == {1, 2}
    with pytest.raises(FailsAgain, match=r"federation\.per_round: 2 found"):
        fed.chances()


def test_everybody_there_is_the_usual_run_to_the_bit() -> None:
    one, all_of_them = (
        toy.simulate(federation={**EVERYBODY, "participation": p})
        for p in ({"kind": "bernoulli", "chance": 1.0}, "uniform")
    )
    assert tree.same(one.state, all_of_them.state) and one.rows == all_of_them.rows


def write(where: Path, text: str) -> dict[str, Any]:
    file = where / "trace.csv"
    file.write_text(text)
    return {"kind": "trace", "file": str(file)}


def test_a_trace_says_who_is_there(tmp_path: Path) -> None:
    stays = ["client,first,last", *(f"{i},{1 + i % 2},{2 + i % 2}" for i in range(12)), "0,3,3"]
    fed = fed_of(write(tmp_path, "\n".join(stays)))
    found = there(fed, range(1, 7))
    even = np.arange(12) % 2 == 0
    assert (found[0] == even).all() and found[1].all() and (found[2] == (~even | (np.arange(12) == 0))).all()
    assert (found[3:] == found[:3]).all()  # and it begins again
    assert fed.chances().tolist() == [1.0] + [2 / 3] * 11


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client,from,last\n0,1,2", "begins with 'from'; needed: client,first,last"),
        ("", "begins with nothing"),
        ("client,first,last\n0,1,x", "line 2 is '0,1,x', needed: 3 whole numbers, of 0 to 11 and from 1"),
        ("client,first,last\n12,1,1", "line 2 is '12,1,1'"),
        ("client,first,last\n0,3,2", "a stay of client 0 in rounds 3 to 2"),
        ("client,first,last\n0,1,1", "never names client 1, 2, 3, 4, 5 ...; needed: a stay of every client"),
        (
            "\n".join(["client,first,last", *(f"{i},{1 if i else 3},{1 if i else 3}" for i in range(12))]),
            "has nobody in round 2",
        ),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.participation\.file") as caught:
        toy.config(federation={**EVERYBODY, "participation": write(tmp_path, text)})
    assert any(said in p for p in caught.value.problems)


@pytest.mark.parametrize(
    ("p", "said"),
    [
        ({"kind": "trace", "file": "nowhere.csv"}, "federation.participation.file: 'nowhere.csv' cannot be read"),
        ({"kind": "trace"}, "federation.participation.file: missing"),
        ({"kind": "markow"}, "(did you mean 'markov'?)"),
        ({"kind": "bernoulli", "chance": 0.0}, "federation.participation.chance: 0.0 found"),
        ({"kind": "bernoulli", "chances": [0.5, 1.5, 1.0]}, "allowed: equal, labels, or a number in (0, 1]"),
        (
            {"kind": "bernoulli", "chances": [0.5]},
            "federation.participation.chances: 1 found, federation.groups.count: 3",
        ),
        ({"kind": "bernoulli", "least": 0.1}, "nothing reads it with chances: equal"),
        ({"kind": "bernoulli", "switch": 0.1}, "federation.participation.switch: unknown key of kind bernoulli"),
    ],
)
def test_what_is_wrong_is_said(p: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(federation={**EVERYBODY, "participation": p})
    assert any(said in found for found in caught.value.problems), caught.value.problems


def test_chances_by_group_need_groups() -> None:
    with pytest.raises(ConfigError, match="a chance for each planted group needs groups"):
        toy.config(
            federation={
                "groups": {"kind": "none", "count": 1},
                "participation": {"kind": "bernoulli", "chances": [1.0]},
            }
        )


def test_they_are_known_before_the_start_where_they_are() -> None:
    p = {"participation": KINDS["bernoulli"]}
    assert participation.unknown(toy.config(federation={**EVERYBODY, **p})) == []
    assert "allowed: null" in participation.unknown(toy.config(federation={**p, "per_round": 3}))[0]


def test_a_markov_run_goes_on_as_it_was(tmp_path: Path) -> None:
    p = {"federation": {**EVERYBODY, "participation": KINDS["markov"]}}
    whole = toy.run_folder("fedavg", tmp_path / "whole", rounds=4, **p)
    toy.run_folder("fedavg", tmp_path / "part", rounds=4, stop_after=2, **p)
    again = toy.run_folder("fedavg", tmp_path / "part", rounds=4, resume=True, **p)
    assert tree.same(again.state, whole.state) and again.rows == whole.rows
