"""FedSTO: what moves in which phase, no labels at clients, no teacher that is sure of nothing; R against singular values; cells by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.engine.resident import Resident
from rayfed.methods.fedsto import away_from_orthogonal, spectral_norm
from tests import toy
from tests.unit.task.test_detect import OBJECTS

PUBLIC: dict[str, Any] = {"federation": {"public": {"rows": 40, "labels": True}}}
FEW = {"warmup": 1, "high": 0.3}


def run(rounds: int = 1, **settings: Any) -> toy.Result:
    return toy.simulate({"name": "fedsto", **FEW, **settings}, executor="vmap", rounds=rounds, **PUBLIC)


def test_first_the_backbone_moves_and_later_everything() -> None:
    alone = run(
        selective=0, server_epochs=0, high=1.01, lam=0.0
    )  # no teacher is that sure: the server's warm-up is left
    first, later = (run(selective=s, server_epochs=0, lam=0.0) for s in (1, 0))
    for name, before in alone.state["model"].items():
        moved = not torch.equal(first.state["model"][name], before)
        assert moved == (not name.startswith("head")) and not torch.equal(later.state["model"][name], before)
    head = sum(x.nbytes for n, x in alone.state["model"].items() if n.startswith("head"))
    asked = len(first.fed.drawn[0].ids)
    assert later.rows[0]["bytes/up"] - first.rows[0]["bytes/up"] == asked * head


def test_clients_labels_are_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    a = run(rounds=2, selective=1)
    c = toy.config("fedsto", **PUBLIC)
    f = toy.federation(c)
    y = f.arrays["y"].copy()
    theirs = np.setdiff1d(np.arange(len(y)), f.public)
    y[theirs] = (y[theirs] + 1) % 4
    other = f.__class__(**{**f.__dict__, "arrays": {**f.arrays, "y": y}})
    monkeypatch.setattr(toy, "federation", lambda c: other)
    assert tree.same(a.state, run(rounds=2, selective=1).state)


def test_it_learns_from_the_servers_rows() -> None:
    done = run(rounds=2, warmup=5, server_epochs=2, selective=1)
    assert done.scores()[0]["loss/global"] < done._replace(state=done.initial).scores()[0]["loss/global"]


def test_r_is_of_singular_values() -> None:
    torch.manual_seed(0)
    flat = torch.linalg.qr(torch.randn(6, 4).double())[0].T  # rows of length 1 at right angles: W W^T = I
    eye, wide = torch.eye(5).double(), torch.randn(4, 3, 2, 2).double()
    assert float(away_from_orthogonal({"w": eye}, frozenset({"w"}))) < 1e-9
    assert float(away_from_orthogonal({"w": flat}, frozenset({"w"}))) == pytest.approx(
        1, abs=0.01
    )  # W^T W lacks two directions
    m = wide.flatten(1)
    exact = sum(float(torch.linalg.eigvalsh(g - torch.eye(len(g))).abs().max()) for g in (m.T @ m, m @ m.T))
    assert float(away_from_orthogonal({"w": wide, "b": torch.ones(4)}, frozenset({"w", "b"}))) == pytest.approx(
        exact, rel=0.1
    )
    assert float(away_from_orthogonal({"w": wide, "b": torch.ones(4)}, frozenset({"b"}))) == 0  # nothing but biases
    diagonal = torch.diag(torch.tensor([3.0, 1.0, -0.5]).double())
    assert float(spectral_norm(diagonal)) == pytest.approx(3, rel=0.05)


def test_classes_taught_by_hand() -> None:
    c = toy.config("fedavg", dtype="float64")
    task = Resident(c, toy.federation(c), None, "cpu").task
    teacher = torch.tensor([[0.0, math.log(9)], [0.0, 0.0]]).double()  # probabilities .9 and .5
    answer = torch.zeros(2, 2).double()
    assert task.taught(answer, teacher, 0.3, 0.8).tolist() == pytest.approx([math.log(2), 0])


def test_boxes_taught_by_hand() -> None:
    """Of two cells the teacher is sure of one, and half sure of the other; another image of which it is sure of none."""
    c = toy.config("fedavg", dtype="float64", **OBJECTS)
    task = Resident(c, toy.federation(c), None, "cpu").task
    teacher = torch.zeros(2, 8, 1, 2).double()
    teacher[0, 4, 0] = torch.tensor([5.0, 0.0]).double()
    teacher[:, 5] = 20.0
    teacher[1, 4] = -3.0
    answer = torch.zeros(2, 8, 1, 2).double()
    answer[0, 0, 0, 0] = 2.0  # its box is moved to the right by (sigmoid(2) - 1/2) / 2 of the image
    moved = 2 * (1 / (1 + math.exp(-2)) - 0.5) / 2
    want = 2 * math.log(2) + 5 * moved + math.log(3)
    assert task.taught(answer, teacher, 0.3, 0.9).tolist() == pytest.approx([want, 0.0])
