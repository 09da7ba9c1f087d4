"""FedStale: the mean of its steps over all that may come is everybody's, beta 0 is FedAvg with inverse chances, NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods._bases import intervals
from tests import toy

COMES = {"federation": {"per_round": None, "participation": {"kind": "bernoulli", "chances": [1.0, 0.6, 0.3]}}}


@pytest.mark.parametrize(
    "settings", [{"beta": 0.5}, {"beta": 1.0, "weight": "one", "chances": "estimated", "cutoff": 3}]
)
def test_rounds_in_numpy(plain: Any, settings: dict[str, Any]) -> None:
    changes = toy.merge(plain.WORK, COMES)
    done = toy.simulate({"name": "fedstale", "server_lr": 0.3, **settings}, rounds=5, **changes)
    x, record = plain.vector(done.initial["model"]), intervals.start(12)
    h = np.zeros((12, len(x)))
    n = np.array([len(plain.data(done.fed, i)[1]) for i in range(12)], float)
    a = np.full(12, 1 / 12) if settings.get("weight") == "one" else n / n.sum()
    for draw in done.fed.drawn:
        inverse = (record["interval"] if "chances" in settings else 1 / done.fed.chances()).numpy()
        u = {i: plain.descend(x, *plain.data(done.fed, i)) - x for i in draw.ids}
        fresh = sum(a[i] * inverse[i] * u[i] for i in u)
        stale = a @ h - sum(a[i] * inverse[i] * h[i] for i in u)
        x = x + 0.3 * (fresh + settings["beta"] * stale)
        for i in u:
            h[i] = u[i]
        record = intervals.after(record, draw.ids, settings.get("cutoff", 50))
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    np.testing.assert_allclose(plain.vector(done.state["h"]), a @ h, atol=1e-12)


def test_the_mean_step_over_all_that_may_come_is_everybodys() -> None:
    """Four clients, all sixteen subsets with their probabilities, as the formula stands: sum of a_i u_i for every beta."""
    rng = np.random.default_rng(0)
    u, h, p = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), np.array([1.0, 0.5, 0.3, 0.1])
    a = np.array([0.4, 0.3, 0.2, 0.1])
    for beta in (0.0, 0.5, 1.0):
        mean = np.zeros(3)
        for there in itertools.product([0, 1], repeat=4):
            s = np.array(there)
            chance = np.prod(np.where(s == 1, p, 1 - p))
            w = s * a / p
            mean += chance * (w @ u + beta * (a @ h - w @ h))
        np.testing.assert_allclose(mean, a @ u, atol=1e-12)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_beta_0_is_fedavg_with_inverse_chances_to_the_bit(executor: str) -> None:
    """By FedAU with known chances, which divides by N in the fold and not in the weights."""
    made = [{"name": "fedstale", "beta": 0.0, "weight": "one"}, {"name": "fedau", "weights": "known"}]
    a, b = (toy.simulate(m, rounds=4, executor=executor, dtype="float64", **COMES).state["model"] for m in made)
    assert float(tree.norm(tree.sub(a, b))) < 1e-13
    other = toy.simulate(
        {"name": "fedstale", "beta": 0.0, "weight": "one", "empty": "stale"},
        rounds=4,
        executor=executor,
        dtype="float64",
        **COMES,
    )
    assert tree.same(a, other.state["model"])


def test_where_all_come_every_beta_is_fedavg() -> None:
    everyone = {"federation": {"per_round": None}}
    made = [
        toy.simulate({"name": "fedstale", "beta": b}, rounds=3, dtype="float64", **everyone) for b in (0.0, 0.4, 1.0)
    ]
    fedavg = toy.simulate("fedavg", rounds=3, dtype="float64", **everyone)
    for r in made:
        assert float(tree.norm(tree.sub(r.state["model"], fedavg.state["model"]))) < 1e-13


def test_the_first_round_knows_no_beta() -> None:
    one, two = (toy.simulate({"name": "fedstale", "beta": b}, rounds=1, **COMES).state for b in (0.0, 1.0))
    assert tree.same(one["model"], two["model"])


class Away(toy.ToyFed):
    """Nobody is there in round 3."""

    def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
        return () if self.round == 3 else super().sample(n, where=where)


@pytest.mark.parametrize("empty", ["skip", "stale"])
def test_a_round_without_anybody(empty: str) -> None:
    """It moves nothing, or along beta times what is remembered; it counts for the intervals either way."""
    settings = {"name": "fedstale", "beta": 0.4, "empty": empty}
    two, three = (toy.simulate(settings, rounds=3, until=r, kind=Away, **COMES).state for r in (2, 3))
    moved = tree.sub(three["model"], two["model"])
    want = tree.scale(two["h"], 0.4 if empty == "stale" else 0.0)
    assert float(tree.norm(tree.sub(moved, want))) < 1e-6
    assert tree.same(two["h"], three["h"]) and (three["gap"] == two["gap"] + 1).all()


def test_it_needs_the_chances_or_estimates_them() -> None:
    there = {"per_round": 3, "participation": {"kind": "markov"}}
    with pytest.raises(ConfigError, match=r"federation\.per_round: 3 found"):
        toy.config("fedstale", federation=there)
    assert toy.config({"name": "fedstale", "chances": "estimated"}, federation=there)
