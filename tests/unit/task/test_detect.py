"""Detection: cells, losses and detections by hand, average precision as pycocotools has it, boxes outside; a network that learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import task as tasks
from rayfed.engine.resident import Resident
from rayfed.task.detect import OVERLAPS, average_precision, detections, overlaps
from tests import toy

OBJECTS: dict[str, Any] = {
    "task": {
        "data": {"name": "scenes:objects", "examples": 60, "test": 20, "size": 20, "objects": 2, "classes": 3},
        "kind": {"name": "detect"},
        "model": {"name": "grid", "width": 4},
    },
    "federation": {"groups": {"kind": "none"}, "clients": 4, "per_round": 3, "partition": {"kind": "natural"}},
}


def resident() -> Resident:
    c = toy.config("fedavg", dtype="float64", **OBJECTS)
    return Resident(c, toy.federation(c), None, "cpu")


def test_cells_and_losses_by_hand() -> None:
    """A grid of 2 x 2 on 20 x 20 pixels, all answers 0 before sigmoid and softmax; one object in the last cell."""
    t: Any = resident().task
    out = torch.zeros(1, 8, 2, 2).double()
    box, objectness, logp = t.cells(out)
    assert box[0, 3].tolist() == [0.5, 0.5, 1.0, 1.0] and box[0, 0].tolist() == [0, 0, 0.5, 0.5]
    boxes = torch.tensor([[[2.0, 12, 12, 18, 20], [-1, -1, -1, -1, -1], [1, 13, 11, 19, 19]]]).double()
    home, edges = t.homes(boxes, (2, 2))
    assert home[0].tolist() == [[0, 0, 0, 1], [0] * 4, [0] * 4]  # the third one's centre is in a cell that is taken
    assert edges[0, 0].tolist() == [0.6, 0.6, 0.9, 1.0]
    want = (1 + 3 * 0.5) * math.log(2) + 5 * (0.1 + 0.1 + 0.1 + 0) + math.log(3)
    assert t._loss(box, objectness, logp, boxes, (2, 2)).item() == pytest.approx(want)
    empty = torch.full((1, 3, 5), -1.0).double()
    assert t._loss(box, objectness, logp, empty, (2, 2)).item() == pytest.approx(4 * 0.5 * math.log(2))
    f = toy.federation(resident().config)
    batch = t.batch({n: a[f.train.rows[:5]] for n, a in f.arrays.items()})
    torch.testing.assert_close(t.loss(t.initial, batch), t.metrics(t.initial, batch)["loss"])


def test_detections_by_hand() -> None:
    """Two cells with one object, of which the better stays; another class and a weak one."""
    answer = np.zeros((7, 1, 4))
    answer[:4, 0, 0], answer[4:, 0, 0] = [0.1, 0.1, 0.5, 0.5], [0.9, 1, 0]
    answer[:4, 0, 1], answer[4:, 0, 1] = [0.1, 0.1, 0.5, 0.6], [0.8, 0.75, 0.25]
    answer[:4, 0, 2], answer[4:, 0, 2] = [0.6, 0.6, 1.2, 0.9], [0.5, 0, 1]
    found = detections(answer, np.array([10.0, 10, 10, 10]), 0.5)
    assert found[:, 0].tolist() == [0, 1, 1] and found[:, 5].tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert found[1].tolist() == pytest.approx([1, 6, 6, 10, 9, 0.5])  # cut at the edge
    assert overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [5, 5, 6, 6]])).tolist() == [[1 / 3, 0]]


def test_average_precision_by_hand() -> None:
    """Two objects; the best detection is right, the second one's the first object again, the third right."""
    truth = [np.array([[0.0, 0, 0, 4, 4], [0, 5, 5, 9, 9]])]
    found = [np.array([[0.0, 0, 0, 4, 4, 0.9], [0, 0, 0, 4, 4, 0.8], [0, 5, 5, 9, 9, 0.7]])]
    assert average_precision(found, truth, 0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(found, [np.concatenate([truth[0], [[1.0, 0, 0, 1, 1]]])], 0.5) == pytest.approx(
        (51 + 50 * 2 / 3) / 202  # a class that is never found
    )
    assert math.isnan(average_precision(found, [np.zeros((0, 5))], 0.5))


def test_average_precision_is_pycocotools() -> None:
    """stats[1] and stats[0] of pycocotools 2.0.11 on the same boxes."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(30):
        b = []
        for _ in range(rng.integers(0, 4)):
            w, h = rng.integers(6, 14, 2)
            left, top = rng.integers(0, 18, 2)
            b.append([rng.integers(0, 3), left, top, left + w, top + h])
        truth.append(np.array(b, float).reshape(-1, 5))
        d = []
        for q in truth[-1]:
            for _ in range(rng.integers(0, 3)):
                e = q[1:] + rng.integers(-2, 3, 4)
                if e[2] > e[0] and e[3] > e[1]:
                    d.append([q[0] if rng.random() < 0.8 else rng.integers(0, 3), *e, rng.random()])
        d.append([rng.integers(0, 3), 1, 1, 9, 9, rng.random()])
        of = np.array(d, float).reshape(-1, 6)
        found.append(of[np.argsort(-of[:, 5])])
    each = [average_precision(found, truth, o) for o in OVERLAPS]
    assert each[0] == pytest.approx(0.29987800914738433, abs=1e-12)
    assert np.mean(each) == pytest.approx(0.0741587908166129, abs=1e-12)


def test_boxes_that_do_not_fit_are_refused() -> None:
    kind, c = tasks.get("detect"), resident().config
    f = toy.federation(c)

    def problem(at: int, value: float) -> str:
        boxes = f.arrays["boxes"].copy()
        boxes[7, 0, at] = value
        (found,) = kind.problems(c, f.__class__(**{**f.__dict__, "arrays": {**f.arrays, "boxes": boxes}}))
        return str(found)

    assert problem(3, 21).startswith("task.data: box 0 of row 7 is [") and "right <= 20" in problem(3, 21)
    assert "allowed: classes 0 to 2" in problem(0, 3)
    assert kind.problems(c, f) == []


def test_a_network_learns() -> None:
    more = {
        "task": {"data": {"objects": 1}, "model": {"width": 8}},
        "local": {"batch_size": 8, "epochs": 5, "optimizer": {"name": "adam", "lr": 0.02}},
    }
    done = toy.simulate("fedavg", executor="vmap", rounds=3, **toy.merge(OBJECTS, more))
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["loss/global"] < 0.7 * first["loss/global"] and 0 <= last["map/global"] <= last["map50/global"] <= 1
