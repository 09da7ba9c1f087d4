"""Franca: Sinkhorn, masks, heads and KoLeo by hand; one level of full width is an ordinary head; who moves the teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.methods.franca import answer, cyclic_mask, koleo, sinkhorn
from tests import toy
from tests.toy import VIEWS

SMALL: dict[str, Any] = {"name": "franca", "prototypes": 8, "hidden": 4, "bottleneck": 3, "levels": (1, 2)}


def test_assignments_are_distributions_that_use_prototypes_alike() -> None:
    t = torch.randn(12, 4, dtype=torch.float64)
    w = torch.tensor([1.0] * 10 + [0.0] * 2, dtype=torch.float64)
    q = sinkhorn(t, w, 0.5)
    torch.testing.assert_close(q.sum(1), w, rtol=0, atol=1e-12)
    torch.testing.assert_close(sinkhorn(t, w, 0.5, 200).sum(0), torch.full((4,), 10 / 4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(q[:10], sinkhorn(t[:10], w[:10], 0.5), rtol=0, atol=1e-12)  # padding counts for nothing
    torch.testing.assert_close(sinkhorn(torch.zeros(5, 4), torch.ones(5), 0.07), torch.full((5, 4), 0.25))
    assert bool(torch.isfinite(sinkhorn(t * 1e4, w, 0.04)).all())


def test_one_iteration_by_hand() -> None:
    """Two rows, two prototypes: columns 4 and 1 become 1/2 each, then rows 5/12 and 7/12 become 1."""
    t = torch.log(torch.tensor([[1.0, 0.5], [3.0, 0.5]], dtype=torch.float64))
    q = sinkhorn(t, torch.ones(2, dtype=torch.float64), 1.0, 1)
    want = [[1 / 4 / (1 / 4 + 1 / 2), 1 / 2 / (1 / 4 + 1 / 2)], [3 / 4 / (3 / 4 + 1 / 2), 1 / 2 / (3 / 4 + 1 / 2)]]
    torch.testing.assert_close(q, torch.tensor(want, dtype=torch.float64))


def test_levels_see_the_first_features_alone_and_gains_do_not_count() -> None:
    done = toy.simulate(SMALL, rounds=1, dtype="float64", **VIEWS)
    z = torch.randn(5, 8, dtype=torch.float64)
    other = torch.cat([z[:, :4], torch.randn(5, 4, dtype=torch.float64)], 1)
    heads = done.state["heads"]
    assert torch.equal(answer(heads["image-2"], z), answer(heads["image-2"], other))
    assert not torch.equal(answer(heads["image-1"], z), answer(heads["image-1"], other))
    assert [heads[f"image-{v}"]["last"]["w"].shape[0] for v in (1, 2)] == [8, 4]
    h, one = z, heads["image-1"]  # the head of the whole width, written out
    for i in ("0", "1"):
        h = F.gelu(h @ one[i]["w"].T + one[i]["b"])
    h = h @ one["2"]["w"].T + one["2"]["b"]
    want = torch.cosine_similarity(h[:, None], one["last"]["w"][None], dim=2)
    torch.testing.assert_close(answer(one, z), want, rtol=0, atol=1e-9)
    louder = {**one, "last": {"w": one["last"]["w"] * 7}}
    torch.testing.assert_close(answer(louder, z), want, rtol=0, atol=1e-9)


def test_masks_hide_a_share_of_the_patches_in_half_of_the_images_anywhere() -> None:
    keys = torch.arange(400)
    hidden = torch.vmap(lambda k: cyclic_mask(k, 4, 6))(keys)
    n = hidden.sum(1)
    assert hidden.shape == (400, 24) and 150 < int((n > 0).sum()) < 250
    assert n[n > 0].min() >= math.floor(0.1 * 24) and n.max() <= math.floor(0.65 * 24)
    often = hidden[n > 0].double().mean(0)
    assert often.min() > 0.2 and often.max() < 0.55  # no place is spared


def test_spread_by_hand() -> None:
    """At right angles the nearest is sqrt 2 away; equal rows are as near as may be; padding is nobody's neighbour."""
    z = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 0.0]], dtype=torch.float64)
    w = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    assert koleo(z, w).tolist() == pytest.approx([-0.5 * math.log(2.0001), -0.5 * math.log(2.0001), 0])
    assert koleo(z[:1], w[:1]).tolist() == [0] and koleo(z, torch.ones(3))[0] > 3


def test_attacks_and_rules_reach_the_teacher_too() -> None:
    """A client sends a million times its update: without a bound that moves the model that is served, with one it cannot."""
    attacks = {"attacks": [{"kind": "scale", "clients": [0], "factor": 1e6}], "federation": {"per_round": None}}
    bound = {"aggregate": {"kind": "norm_bound", "norm": 0.1}}
    loose, bounded = (
        toy.simulate(SMALL, rounds=1, executor="vmap", **toy.merge(VIEWS, {**attacks, **more})) for more in ({}, bound)
    )
    for part in ("model", "student"):
        moved = [tree.norm(tree.sub(r.state[part], r.initial[part])) for r in (loose, bounded)]
        assert float(moved[0]) > 1 and float(moved[1]) < 0.11, part


@pytest.mark.parametrize("teacher", ["clients", "server"])
def test_a_teacher_that_keeps_all_of_itself_stays_and_one_that_keeps_nothing_is_the_student(teacher: str) -> None:
    kept, gone = (
        toy.simulate({**SMALL, "momentum": m, "teacher": teacher}, rounds=1, dtype="float64", **VIEWS)
        for m in (1.0, 0.0)
    )
    torch.testing.assert_close(kept.state["model"], kept.initial["model"], rtol=0, atol=0)
    assert not tree.same(kept.state["student"], kept.initial["student"])
    for model, student in (("model", "student"), ("model_heads", "heads")):
        a, b = ({"/".join(p): x for p, x in tree.leaves(gone.state[n])} for n in (model, student))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
