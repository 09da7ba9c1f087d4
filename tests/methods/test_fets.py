"""FeTS: the clock and its score by hand, times that follow from client and round alone, the challenge's rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.methods import fets
from tests import toy

VAL: dict[str, Any] = {"federation": {"per_round": None, "split": {"val": 0.3}}}


def test_the_mean_of_everybody_is_fedavg() -> None:
    a, b = (toy.simulate(m, executor="vmap", **VAL) for m in ("fets", "fedavg"))
    assert tree.same(a.state["model"], b.state["model"])
    still = toy.simulate({"name": "fets", "aggregation": "momentum", "momentum": 0.0}, executor="vmap", **VAL)
    assert tree.same(still.state["model"], b.state["model"])
    whole = toy.simulate({"name": "fets", "aggregation": "clipped", "percentile": 100.0}, executor="vmap", **VAL)
    assert float(tree.norm(tree.sub(whole.state["model"], b.state["model"]))) < 1e-5


def test_the_score_by_hand() -> None:
    """Scores 0.2, 0.6, 0.4 in rounds of 10, 20, 30 s, budget 100 s: (2 + 12 + 18 + 40 x 0.6) / 100."""
    clock = torch.zeros(3).double()
    for score, lasted in ((0.2, 10.0), (0.6, 20.0), (0.4, 30.0)):
        clock = fets.advanced(clock, score, lasted)
    assert clock.tolist() == pytest.approx([60, 0.6, 32]) and fets.convergence(clock, 100.0) == pytest.approx(0.56)
    for times in ((5.0, 90.0), (40.0, 1.0, 30.0)):
        clock = torch.zeros(3).double()
        for lasted in times:
            clock = fets.advanced(clock, 0.7, lasted)
        assert fets.convergence(clock, 100.0) == pytest.approx(0.7)  # of a constant score, whatever the times


def test_times_follow_from_client_and_round() -> None:
    a, b = (fets.seconds(3, 2, 5, 40, 10) for _ in range(2))
    assert a == b != fets.seconds(3, 3, 5, 40, 10) and a != fets.seconds(4, 2, 5, 40, 10)
    many = np.array([fets.seconds(0, 1, c, 100, 10) for c in range(300)])
    assert (many[:, 1] > many[:, 0] + 2).all()
    down, score = fets.NETWORK[0], fets.COMPUTE[1]
    assert many[:, 0].min() > 0.6 * (down[0] + 10 * score[0]) and many[:, 0].max() < 1.4 * (down[1] + 10 * score[1])
    assert fets.seconds(0, 1, 0, 0, 0)[0] == pytest.approx(
        fets.seconds(0, 1, 0, 50, 0)[0]
    )  # training changes no other draw


def test_clipping_by_hand() -> None:
    """|u| of one tensor are 1, 1, 2, 10; the percentile 2/3 of the way is 2."""
    cut = fets.clipped_mean(
        {"w": torch.tensor([[1.0, -2.0], [-1.0, 10.0]])}, torch.tensor([0.5, 0.5]).double(), 200 / 3
    )
    assert cut["w"].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    one = torch.tensor([[3.0, -1.0]] * 2)
    assert fets.clipped_mean({"w": one}, torch.tensor([0.25, 0.75]).double(), 100.0)["w"].tolist() == [3, -1]


def test_the_slowest_third_is_left_out_and_after_the_budget_nothing_is_done() -> None:
    more = toy.merge(VAL, {"evaluate": {"every": 9}})
    done = toy.simulate({"name": "fets", "choose": "skip_slowest"}, executor="vmap", rounds=4, **more)
    assert [r["fets/trained"] for r in done.rows] == [12, 8, 8, 12]
    hours = [r["fets/hours"] for r in done.rows]
    assert np.diff(hours).min() > 0 and done.rows[1]["visits"] == 12 + 8
    short = toy.simulate({"name": "fets", "budget": 1.0}, executor="vmap", rounds=2, **more)
    assert short.rows[0]["visits"] == 24 and short.rows[1]["visits"] == 0
    assert short.rows[1]["fets/convergence"] == short.rows[0]["fets/convergence"]


def test_what_cannot_be_scored_is_refused() -> None:
    (problem,) = methods.of(toy.config("fets")).fits(toy.federation(toy.config()))
    assert problem.startswith("federation.split.val: 0 found")
