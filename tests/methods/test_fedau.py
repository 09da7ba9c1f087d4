"""FedAU: intervals by hand, everybody there is uniform FedAvg to the bit, three rounds in NumPy, known and equal weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods._bases import intervals
from tests import toy

COMES = {"federation": {"per_round": None, "participation": {"kind": "bernoulli", "chances": [0.9, 0.5, 0.2]}}}


def walk(visits: list[list[int]], cutoff: int = 100, clients: int = 1) -> list[list[float]]:
    """The weights that each round uses."""
    record, used = intervals.start(clients), []
    for ids in visits:
        used.append(intervals.weights(record).tolist())
        record = intervals.after(record, ids, cutoff)
    return used


@pytest.mark.parametrize("every", [2, 5])
def test_regular_visits_give_the_cards_weights(every: int) -> None:
    """Visits in rounds 0, L, 2 L ...: 1, 1, (1 + L) / 2, (1 + 2 L) / 3."""
    used = walk([[0] if r % every == 0 else [] for r in range(3 * every + 1)])
    assert [used[k * every][0] for k in range(4)] == pytest.approx([1, 1, (1 + every) / 2, (1 + 2 * every) / 3])


def test_an_interval_ends_at_the_cutoff() -> None:
    rng = np.random.default_rng(0)
    visits = [np.flatnonzero(rng.random(6) < [1, 0.8, 0.5, 0.2, 0.1, 0.0]).tolist() for _ in range(400)]
    used = np.array(walk(visits, 3, 6))
    assert used.min() >= 1 and used.max() <= 3 and used[-1, 0] == 1 and used[-1, 5] == 3
    assert set(np.array(walk(visits, 1, 6)).ravel()) == {1.0}


def test_weights_go_to_one_over_the_chance() -> None:
    rng, p = np.random.default_rng(1), np.array([1.0, 0.5, 0.25, 0.1])
    used = walk([np.flatnonzero(rng.random(4) < p).tolist() for _ in range(8000)], 1000, 4)
    assert used[-1] == pytest.approx(1 / p, rel=0.12)


def test_a_rounds_own_visit_counts_from_the_next_on() -> None:
    record = intervals.after(intervals.after(intervals.start(2), [1], 9), [], 9)
    here, away = (intervals.after(record, ids, 9) for ids in ([0, 1], []))
    assert intervals.weights(record).tolist() == [1, 1]  # whoever is there now
    assert intervals.weights(here).tolist() == [3, 1.5] and intervals.weights(away).tolist() == [1, 1]
    assert record["gap"].tolist() == [2, 1]  # nothing was written in place


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_everybody_there_is_uniform_fedavg_to_the_bit(executor: str) -> None:
    changes = {"federation": {"per_round": None}, "executor": executor}
    au = toy.simulate("fedau", rounds=3, **changes)
    one = toy.simulate({"name": "fedau", "weights": "one"}, rounds=3, **changes)
    uniform = toy.simulate({"name": "fedvarp"}, rounds=1, **changes)  # its first round is the plain mean
    assert tree.same(au.state["model"], one.state["model"]) and set(au.state["interval"].tolist()) == {1.0}
    first = toy.simulate("fedau", rounds=1, **changes)
    assert tree.same(first.state["model"], uniform.state["model"])


@pytest.mark.parametrize("weights", ["learned", "known", "one"])
def test_rounds_in_numpy(plain: Any, weights: str) -> None:
    changes = toy.merge(plain.WORK, COMES)
    settings = {
        "name": "fedau",
        "weights": weights,
        "server_lr": 0.7,
        **({"cutoff": 4} if weights == "learned" else {}),
    }
    done = toy.simulate(settings, rounds=6, **changes)
    x, record = plain.vector(done.initial["model"]), intervals.start(12)
    assert len({d.ids for d in done.fed.drawn}) > 3
    for draw in done.fed.drawn:
        omega = {"learned": record["interval"], "known": 1 / done.fed.chances(), "one": torch.ones(12)}[
            weights
        ].tolist()
        x = x + 0.7 / 12 * sum(omega[i] * (plain.descend(x, *plain.data(done.fed, i)) - x) for i in draw.ids)
        record = intervals.after(record, draw.ids, done.fed.method.settings.cutoff)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    assert torch.equal(done.state["interval"], record["interval"])


def test_weights_are_the_servers_and_cost_nothing() -> None:
    au, avg = (toy.simulate(m, rounds=1, federation={"per_round": 4}) for m in ("fedau", "fedvarp"))
    assert au.rows[0]["bytes/down"] == avg.rows[0]["bytes/down"]


def test_chances_must_be_known_where_they_are_used() -> None:
    there = {"per_round": 3, "participation": {"kind": "bernoulli"}}
    with pytest.raises(ConfigError, match=r"federation.per_round: 3 found, with .* allowed: null"):
        toy.config({"name": "fedau", "weights": "known"}, federation=there)
    assert toy.config("fedau", federation=there)
