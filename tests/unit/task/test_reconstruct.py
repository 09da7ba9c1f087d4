"""Reconstruction: errors and measures by hand, who is an anomaly, and a network that learns to tell them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import task as tasks
from rayfed.engine.resident import Resident
from tests import toy

ODD: dict[str, Any] = {
    "task": {
        "data": {"name": "scenes:anomalies"},
        "kind": {"name": "reconstruct"},
        "model": {"name": "autoencoder", "width": 4, "latent": 4},
    },
    "federation": {"groups": {"kind": "none"}, "clients": 5, "per_round": 3},
}


def resident(**kind: Any) -> Resident:
    c = toy.config("fedavg", dtype="float64", **toy.merge(ODD, {"task": {"kind": kind}}))
    return Resident(c, toy.federation(c), None, "cpu")


def test_errors_and_measures_by_hand() -> None:
    t: Any = resident().task
    x, answer = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).double(), torch.tensor([[0.5, 1.0], [0.0, 0.0]]).double()
    assert t.errors(answer, x).tolist() == [0.125, 1.0]
    assert resident(loss="absolute").task.errors(answer, x).tolist() == [0.25, 1.0]
    y, error = np.array([0, 1, 2, 7, 8]), np.array([0.1, 0.2, 0.3, 0.25, 0.9])
    found = t.summary({"loss": error}, {"y": y})
    assert found["auroc"] == pytest.approx(5 / 6) and found["recall@fpr5"] == 0.5  # one of six pairs is the wrong way
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(t.summary({"loss": error[:3]}, {"y": y[:3]})["auroc"])
    assert np.isnan(t.summary({"loss": error * np.nan}, {"y": y})["auroc"])  # of a model that has diverged


def test_anomalies_are_named_or_have_no_training_rows() -> None:
    here = resident()
    assert here.task._anomalies.tolist() == [5, 6, 7, 8, 9]
    assert resident(anomalies=["3", "0"]).task._anomalies.tolist() == [0, 3]
    kind = tasks.get("reconstruct")
    f = toy.federation(here.config)
    (unknown,) = kind.problems(toy.config(**toy.merge(ODD, {"task": {"kind": {"anomalies": ["11"]}}})), f)
    assert unknown.startswith("task.kind.anomalies: '11' found") and "has: 0, 1, 2" in unknown
    every = toy.merge(ODD, {"task": {"data": {"name": "digits"}}})
    (none,) = kind.problems(toy.config(**every), toy.federation(toy.config(**every)))
    assert none.startswith("task.kind.anomalies: missing, every class of digits has training rows")
    flipped = toy.config(**toy.merge(ODD, {"attacks": [{"kind": "label_flip", "clients": [0]}]}))
    (unread,) = kind.problems(flipped, f)
    assert unread.startswith("attacks.0.kind: label_flip found, which changes labels, and task.kind: reconstruct reads")


def test_a_network_learns() -> None:
    more = {"local": {"batch_size": 32, "epochs": 3, "optimizer": {"name": "adam", "lr": 0.02}}}
    done = toy.simulate("fedavg", executor="vmap", rounds=2, **toy.merge(ODD, more))
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["loss/personal"] < 0.7 * first["loss/personal"] and 0 <= last["auroc/global"] <= 1
    assert last["auroc/personal"] is None  # clients have normal rows alone
