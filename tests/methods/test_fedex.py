"""FedEx: one candidate is FedAvg to the bit, equal losses move nothing, a round's z by hand, and a good rate is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, methods, tree
from rayfed.errors import ConfigError
from rayfed.methods.fedex import moved, slope
from tests import toy

VAL = {"federation": {"split": {"val": 0.3}}}


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize(("settings", "local"), [({}, {}), ({"steps": [3]}, {"epochs": None, "steps": 3})])
def test_one_candidate_is_fedavg_to_the_bit(executor: str, settings: dict[str, Any], local: dict[str, Any]) -> None:
    more = {"executor": executor, **VAL, "local": local}
    ex = toy.simulate({"name": "fedex", "lr": [1.0], **settings}, rounds=3, **more)
    avg = toy.simulate("fedavg", rounds=3, **more)
    assert tree.same(ex.state["model"], avg.state["model"])
    assert all(float(z) == 0 for z in ex.state["z"].values()) and [r["arms/entropy"] for r in ex.rows] == [0.0] * 3


def test_equal_losses_move_nothing_and_theta_stays_a_distribution() -> None:
    z = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    drawn, w = torch.tensor([0, 1, 1, 2]), torch.full((4,), 0.25, dtype=torch.float64)
    none = slope(z, drawn, w, torch.zeros(4, dtype=torch.float64))
    assert torch.equal(none, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(moved(z, none, torch.tensor(0.0)), z)
    assert torch.allclose(moved(z, none, torch.tensor(1.0)), z, atol=1e-15)
    rare = torch.tensor([1 - 1e-300, 1e-300], dtype=torch.float64).log()
    after = moved(
        rare,
        slope(rare, torch.tensor([1]), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)),
        torch.tensor(1.0),
    )
    assert torch.isfinite(after).all() and float(after.exp().sum()) == pytest.approx(1)


def test_by_hand() -> None:
    """theta = (1/2, 1/2), three replies 0, 0, 1 of weights 1/2, 1/4, 1/4 and feedback 2, 0, -1:
    gradient (1/2 2 + 1/4 0, -1/4) / (1/2) = (2, -1/2); eta = sqrt(2 ln 2) / 2; z - eta g, normalised."""
    z = torch.full((2,), -math.log(2), dtype=torch.float64)
    g = slope(
        z, torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.25, 0.25]).double(), torch.tensor([2.0, 0.0, -1.0]).double()
    )
    assert g.tolist() == [2.0, -0.5]
    theta = moved(z, g, torch.tensor(2.0)).exp()
    eta = math.sqrt(2 * math.log(2)) / 2
    assert theta[0] == pytest.approx(1 / (1 + math.exp(2.5 * eta))) and float(theta.sum()) == pytest.approx(1)


@pytest.mark.parametrize("feedback", ["after", "change"])
def test_two_rounds_in_numpy(plain: Any, feedback: str) -> None:
    """Each client trains at its own candidate's rate; losses on validation rows; the baseline is the last round's mean."""
    factors = [0.5, 2.0]
    done = toy.simulate({"name": "fedex", "lr": factors, "feedback": feedback}, rounds=2, **toy.merge(plain.WORK, VAL))
    fed = toy.make_fed(done.fed.config)
    x, theta, baseline = plain.vector(done.initial["model"]), np.array([0.5, 0.5]), 0.0
    for r, draw in enumerate(done.fed.drawn, 1):
        u = keys.numpy(keys.key(1, r << 20, -1, "candidates of lr")).random(12)
        arm = {c: int(u[c] >= theta[0]) for c in draw.ids}
        n, v, s, deltas = [], [], [], []
        for c in draw.ids:
            y = plain.descend(x, *plain.data(fed, c), lr=plain.LR * factors[arm[c]])
            held = plain.data(fed, c, "val")
            n.append(len(plain.data(fed, c)[1]))
            v.append(len(held[1]))
            before, after = (plain.loss(p, *held) if len(held[1]) else 0.0 for p in (x, y))
            s.append(after - before if feedback == "change" else after)
            deltas.append(y - x)
        x = x + np.average(deltas, axis=0, weights=n)
        w = np.array(v) / sum(v)
        g = np.array(
            [sum(w[i] * (s[i] - baseline) for i, c in enumerate(draw.ids) if arm[c] == k) / theta[k] for k in (0, 1)]
        )
        theta = theta * np.exp(-math.sqrt(2 * math.log(2)) / np.abs(g).max() * g)
        theta, baseline = theta / theta.sum(), float(w @ s)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-10)
    np.testing.assert_allclose(done.state["z"]["lr"].exp().numpy(), theta, atol=1e-10)


def test_a_good_rate_is_found_and_kept_below_the_cutoff() -> None:
    spec = {"name": "fedex", "lr": [0.001, 1.0], "cutoff": 0.6}
    done = toy.simulate(spec, rounds=12, federation={"per_round": None, "split": {"val": 0.3}})
    assert float(done.state["z"]["lr"][1].exp()) > 0.6 and done.rows[-1]["arms/lr"] > done.rows[0]["arms/lr"]
    told = int(done.state["told"])
    assert told < 12 and done.rows[-1]["arms/entropy"] < 0.6  # and nothing is drawn any more


def test_other_groups_are_drawn_by_themselves() -> None:
    spec = {"name": "fedex", "lr": [1.0], "steps": [1, 4], "weight_decay": [0.0, 0.1]}
    done = toy.simulate(spec, rounds=2, **VAL)
    assert done.state["z"].keys() == {"lr", "steps", "weight_decay"} and done.rows[0]["arms/entropy"] == pytest.approx(
        2 * math.log(2)
    )
    assert float(done.state["z"]["lr"]) == 0 and all(
        float(done.state["z"][g].exp().sum()) == pytest.approx(1) for g in ("steps", "weight_decay")
    )


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        ({}, {}, "federation.split.val: 0 found"),
        ({"lr": []}, VAL, "method.lr"),
        ({"lr": [1.0, 1.0]}, VAL, "each candidate once"),
        ({"lr": [-1.0]}, VAL, "method.lr"),
        ({"steps": [0]}, VAL, "method.steps"),
    ],
)
def test_what_is_wrong_is_said(settings: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config({"name": "fedex", **settings}, **changes)
    assert any(said in p for p in caught.value.problems), caught.value.problems
