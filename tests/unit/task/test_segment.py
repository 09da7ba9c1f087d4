"""Segmentation: losses, overlaps and distances of edges by hand; masks that fit no picture; a network that learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import task as tasks
from rayfed.engine.resident import Resident
from rayfed.task.segment import edge_distance
from tests import toy

STROKES: dict[str, Any] = {
    "task": {
        "data": {"name": "scenes:strokes", "examples": 60, "test": 24, "size": 20, "sites": 4},
        "kind": {"name": "segment", "regions": ["whole", "core", "stroke"], "nested": True},
        "model": {"name": "unet", "width": 4, "depth": 1},
    },
    "federation": {"groups": {"kind": "none"}, "clients": 4, "per_round": 3, "partition": {"kind": "natural"}},
}


def resident(**kind: Any) -> Resident:
    c = toy.config("fedavg", dtype="float64", **toy.merge(STROKES, {"task": {"kind": kind}}))
    return Resident(c, toy.federation(c), None, "cpu")


def test_overlaps_and_losses_by_hand() -> None:
    t: Any = resident().task
    masks = torch.tensor([[[3, 2, 1, 0, 255]]])
    p = torch.nn.functional.one_hot(torch.tensor([[[3, 3, 0, 0, 3]]]), 4).permute(0, 3, 1, 2).double()
    found = {n: v.item() for n, v in t.judge_mean(p, {"masks": masks}).items()}
    # whole: {0, 1, 2} against {0, 1}; core: {0, 1} twice; stroke: {0} against {0, 1}; the pixel that is not known counts nowhere
    assert found["dice-whole"] == pytest.approx(4 / 5) and found["dice-core"] == 1
    assert found["dice-stroke"] == pytest.approx(2 / 3) and found["dice"] == pytest.approx((4 / 5 + 1 + 2 / 3) / 3)
    assert found["iou"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    soft = 1 - ((2 * 2 + 1) / (5 + 1) + 1 + (2 * 1 + 1) / (3 + 1)) / 3
    assert found["loss"] == pytest.approx(2 * -math.log(1e-12) / 4 + soft)  # two of four known pixels are wrong
    assert resident(loss="dice").task.judge_mean(p, {"masks": masks})["loss"].item() == pytest.approx(soft)
    nothing = torch.zeros(1, 1, 5, dtype=torch.long)
    none = torch.nn.functional.one_hot(nothing, 4).permute(0, 3, 1, 2).double()
    assert t.judge_mean(none, {"masks": nothing})["dice"].item() == 1
    assert (t.members(masks)[:, 0] >= t.members(masks)[:, 1]).all()  # nested: the whole contains the core


def test_a_training_loss_is_the_measured_one() -> None:
    here = resident()
    f, t = toy.federation(here.config), here.task
    batch = t.batch({n: a[f.train.rows[:5]] for n, a in f.arrays.items()})
    torch.testing.assert_close(t.loss(t.initial, batch), t.metrics(t.initial, batch)["loss"])
    assert torch.allclose(t.predict(t.initial, batch).sum(1), torch.ones(()).double())


def test_distances_of_edges_by_hand() -> None:
    a, b = np.zeros((2, 9, 9), bool)
    assert edge_distance(a, b, 95) == 0
    a[4, 1] = True
    assert edge_distance(a, b, 95) == math.hypot(9, 9)
    b[4, 4] = b[1, 1] = True
    assert edge_distance(a, b, 100) == edge_distance(b, a, 100) == 3
    filled = np.zeros((9, 9), bool)
    filled[1:8, 1:8] = True
    smaller = np.zeros((9, 9), bool)
    smaller[2:7, 2:7] = True
    assert edge_distance(filled, smaller, 50) == 1 and edge_distance(filled, smaller, 100) == math.sqrt(2)


def test_masks_that_do_not_fit_are_refused() -> None:
    kind, c = tasks.get("segment"), resident().config
    f = toy.federation(c)
    few = toy.config(**toy.merge(STROKES, {"task": {"kind": {"regions": ["whole", "core"]}}}))
    (problem,) = kind.problems(few, f)
    assert "holds 3, task.kind.regions names 2; allowed: 0 to 2, and 255" in problem and "the mask of row " in problem
    (shape,) = kind.problems(
        c, f.__class__(**{**f.__dict__, "arrays": {**f.arrays, "masks": f.arrays["masks"][:, 1:]}})
    )
    assert "has masks of shape (19, 20), its images are (1, 20, 20)" in shape
    (twice,) = kind.problems(toy.config(**toy.merge(STROKES, {"task": {"kind": {"regions": ["a b", "a_b"]}}})), f)
    assert "found twice" in twice
    for kind_of, name in (("resized_crop", "local.augment.0.kind"), ("flip", "local.augment.0.kind")):
        (moved,) = kind.problems(toy.config(**toy.merge(STROKES, {"local": {"augment": [{"kind": kind_of}]}})), f)
        assert moved.startswith(f"{name}: {kind_of} found, which moves pixels") and "resized_crop" not in moved[50:]
    (turned,) = kind.problems(
        toy.config(**toy.merge(STROKES, {"federation": {"groups": {"kind": "rotation", "count": 2}}})), f
    )
    assert turned.startswith("federation.groups.kind: rotation found, which turns pictures, and masks would stay")


def test_a_network_learns() -> None:
    more = {"local": {"batch_size": 8, "epochs": 3, "optimizer": {"name": "adam", "lr": 0.01}}}
    done = toy.simulate("fedavg", executor="vmap", rounds=3, **toy.merge(STROKES, more))
    first, last = (done._replace(state=s).scores()[0] for s in (done.initial, done.state))
    assert last["loss/global"] < 0.85 * first["loss/global"] and 0 < last["hd95/global"] < 30
