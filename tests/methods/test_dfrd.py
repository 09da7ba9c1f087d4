"""DFRD: without iterations FedAvg to the bit, what its generator is asked for by hand, an averaged generator."""

from __future__ import annotations

import math

import pytest
import torch

from rayfed import methods, tree
from rayfed.distill import datafree
from tests import toy

SHORT = {"name": "dfrd", "iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}


def test_without_iterations_it_is_fedavg_to_the_bit() -> None:
    done = toy.simulate({**SHORT, "iterations": 0}, executor="vmap", rounds=1)
    assert tree.same(done.state["model"], toy.simulate("fedavg", executor="vmap", rounds=1).state["model"])


def test_it_is_fedftg_under_other_settings() -> None:
    """And a single client teaches the average nothing, while the generator and its average learn."""
    other = {"mix": "logit", "fidelity_of": "ensemble", "adversary": "selective", "generator_ema": 0.5}
    ours, theirs = (toy.simulate({**SHORT, **m}, executor="vmap", rounds=1) for m in ({}, {**other, "name": "fedftg"}))
    assert tree.same(ours.state, theirs.state)
    one = {"federation": {"per_round": 1}, "executor": "vmap", "dtype": "float64"}
    done, plain = (toy.simulate(m, rounds=1, **one) for m in (SHORT, "fedavg"))
    model = [tree.flatten(d.state["model"]) for d in (done, plain)]
    torch.testing.assert_close(*model, rtol=0, atol=1e-12)
    assert not tree.same(done.state["generator"]["ema"], done.initial["generator"]["ema"])
    assert not tree.same(done.state["generator"]["ema"], done.state["generator"]["g"])


def test_only_rows_count_on_which_the_ensemble_is_right_and_the_student_wrong() -> None:
    """Three rows of label 0: both right, the ensemble alone, the student alone; at tau 1 the second has KL 0.6 ln 1.5 + 0.4 ln 2/3."""
    s = methods.get("dfrd").Settings(tau=1.0)
    ensemble = torch.log(torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]))
    student = torch.log(torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.7, 0.3]]))
    y, alpha = torch.zeros(3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.float64)
    got = datafree._against(s, ensemble, ensemble[None], student, alpha, y)
    assert float(got) == pytest.approx(-(0.6 * math.log(1.5) + 0.4 * math.log(2 / 3)) / 3, abs=1e-6)
