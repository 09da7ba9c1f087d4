"""FedLGD: without the server's set FedAvg on made inputs, rows never in training; matching, contrast and statistics by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.methods.fedlgd import labels_of, mismatch, supervised_contrast
from tests import toy

SHORT: dict[str, Any] = {
    "name": "fedlgd",
    "ipc": 2,
    "server_ipc": 1,
    "warm_steps": 2,
    "refresh_steps": 1,
    "server_steps": 2,
}
ONE = {"epochs": None, "steps": 1}


def test_without_the_servers_set_it_is_fedavg_on_the_made_inputs(hand) -> None:
    """Whole batches: equal weights of clients, rows of classes that a client lacks left out."""
    done = toy.simulate({**SHORT, "anchors": False}, rounds=1, **hand.WORK)
    made, moved = done.clients(), []
    for own in made.values():
        y, w = labels_of(4, 2), own["has"][labels_of(4, 2)]

        def loss(p, own=own, y=y, w=w):
            return (F.cross_entropy(hand.logits(p, own["images"]), y, reduction="none") * w).sum() / w.sum()

        moved.append(hand.descend(done.initial["model"], loss))
    assert len(made) == len(done.fed.drawn[0].ids)
    mean = {n: sum(m[n] for m in moved) / len(moved) for n in moved[0]}
    hand.same(done.state["model"], mean)


def test_training_sees_made_inputs_alone_and_a_visit_says_which_classes_it_has() -> None:
    done = toy.simulate({**SHORT, "every": 2}, rounds=2, dtype="float64")
    method, task = done.fed.method, done.fed.task
    assert all(p.over.kind == "nothing" for c in (False, True) for p in method.train.with_(contrast=c)(task).phases)
    for c, own in done.clients().items():
        counts = done.fed.federation.class_counts[int(c)]
        assert own["images"].shape == (8, 8) and own["has"].tolist() == (counts > 0).astype(float).tolist()
    assert bool(done.state["drawn"]) and done.state["images"].shape == (4, 8)
    assert done.state["ready"].nonzero()[:, 0].tolist() == sorted(int(c) for c in done.clients())
    assert {"fedlgd/before", "fedlgd/after"} <= done.rows[0].keys() and "fedlgd/before" not in done.rows[1]


def test_a_set_begins_with_the_means_and_deviations_of_its_classes() -> None:
    """A rate of nearly nothing leaves the pixels as drawn: of 400 a class, means and deviations are the rows' own."""
    done = toy.simulate({**SHORT, "ipc": 400, "pixel_lr": 1e-12}, rounds=1, dtype="float64", local=ONE)
    c = max(done.clients(), key=lambda c: done.fed.federation.class_counts[int(c)].max())
    rows = done.fed.federation.train[int(c)]
    x, y = (torch.as_tensor(done.fed.federation.arrays[n][rows]).double() for n in "xy")
    k = int(y.long().bincount().argmax())
    mine, made = x[y == k], done.clients()[c]["images"][labels_of(4, 400) == k]
    torch.testing.assert_close(made.mean(0), mine.mean(0), rtol=0, atol=0.3)
    torch.testing.assert_close(made.std(0), mine.std(0, correction=0), rtol=0.15, atol=0.02)


def test_matching_is_0_where_the_set_reproduces_what_was_learned_and_the_model_stays() -> None:
    done = toy.simulate({**SHORT, "every": 1, "server_steps": 20, "pixel_lr": 0.01}, rounds=1, dtype="float64")
    task, model = done.fed.task, done.initial["model"]
    x, y = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    g = torch.func.grad(lambda p: task.loss(p, {"x": x, "y": y, "w": torch.ones(6)}).mean())(model)
    assert abs(float(mismatch(task, model, x, y, tree.scale(g, 3.0)))) < 1e-9
    assert float(mismatch(task, model, x, y, tree.scale(g, -1.0))) == pytest.approx(
        2 * sum(int((v.flatten(1).norm(dim=1) > 0).sum()) for v in g.values() if v.dim() == 2)
    )
    assert done.rows[0]["fedlgd/after"] < done.rows[0]["fedlgd/before"]
    plain = toy.simulate({**SHORT, "every": 1, "server_steps": 0, "pixel_lr": 0.01}, rounds=1, dtype="float64")
    assert tree.same(plain.state["model"], done.state["model"])  # the server's steps move pixels only


def test_the_contrast_by_hand() -> None:
    """Three rows of length 1, two of them alike: -log of e^(0 / T) and, of the other direction, the same; the third has no partner."""
    h = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    y, w = torch.tensor([0, 0, 1, 0]), torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    first = -math.log(1 / (1 + math.exp(-2)))  # cosines 0 and -1, T = 1/2
    second = -math.log(1 / 2)  # cosines 0 and 0
    assert float(supervised_contrast(h, y, w, 0.5)) == pytest.approx((first + second) / 2, abs=1e-6)
