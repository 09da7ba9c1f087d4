"""The kind `ssl`: neighbours, probe and contrast by hand and by scikit-learn; views are crops; what it leaves out and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from rayfed import keys, methods
from rayfed.engine.resident import Resident
from rayfed.launch import task_check
from rayfed.task.ssl import contrast, neighbours, probe
from tests import toy

VIEWS = toy.VIEWS


@pytest.fixture(scope="module")
def resident() -> Resident:
    c = toy.config(dtype="float64", **VIEWS)
    return Resident(c, toy.federation(c), None, "cpu")


def test_the_last_layer_is_left_out_and_a_run_is_a_start_for_other_kinds(resident: Resident) -> None:
    t = resident.task
    batch = t.batch({n: a[:9] for n, a in resident.data.items()})
    assert "head.weight" not in t.params_like and t.head == () and t.feature_size == 8
    assert torch.equal(t.features(t.initial, batch["x"]), t.predict(t.initial, batch))
    assert [m.name for m in t.measures] == ["loss", "knn", "linear", "knn@2"] and t.row_measures == ()
    plain = toy.config(**{**VIEWS, "task": {**VIEWS["task"], "kind": "classify"}})
    other = Resident(
        plain, toy.federation(plain), {"params": {n: p.numpy() for n, p in t.initial.items()}, "base": None}, "cpu"
    ).task
    assert set(other.initial) - set(t.initial) == {"head.weight", "head.bias"}
    torch.testing.assert_close(other.initial["body.0.weight"].double(), t.initial["body.0.weight"])


def test_the_loss_by_hand(resident: Resident) -> None:
    """Of two rows and padding, without a key: z / T on the diagonal, the cosine beside it."""
    t = resident.task
    x = torch.rand(3, *t.input_shape, dtype=torch.float64)
    h = t.apply(t.initial, x)
    cos = torch.cosine_similarity(h[0], h[1], dim=0) / 0.2
    loss = t.loss(t.initial, {"x": x, "w": torch.tensor([1.0, 1.0, 0.0])})
    want = math.log(math.exp(1 / 0.2) + math.exp(cos)) - 1 / 0.2
    assert loss[:2].tolist() == pytest.approx([want, want])
    assert contrast(h[:2].numpy(), 0.2) == pytest.approx(want)


def test_views_are_crops_that_depend_on_the_key(resident: Resident) -> None:
    t = resident.task
    x = torch.rand(3, *t.input_shape, dtype=torch.float64)
    large, small = t.views(x, torch.tensor(3))
    again = t.views(x, torch.tensor(3))[0]
    assert len(large) == 2 and len(small) == 1 and all(v.shape == x.shape for v in [*large, *small])
    assert torch.equal(large[0], again[0]) and not torch.equal(large[0], large[1])
    flat = torch.full_like(x, 0.7)  # every part of an even image is even
    large, small = t.views(flat, torch.tensor(3))
    assert all(torch.allclose(v, flat) for v in [*large, *small])


def test_neighbours_are_those_of_scikit_learn_and_by_hand() -> None:
    h = np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0]])
    assert neighbours(h, np.array([0, 0, 1, 1, 1]), 1) == 1.0  # the last row's nearest is (0.1, 1)
    assert neighbours(h, np.array([0, 1, 1, 1, 1]), 1) == pytest.approx(3 / 5)  # the first two answer for one another
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(60, 5)), rng.integers(3, size=60)
    s = cosine_similarity(h)
    np.fill_diagonal(s, -2)
    right = 0
    for i in range(60):
        near = np.argsort(-s[i])[:7]
        votes = np.bincount(y[near], weights=np.exp(s[i, near] / 0.07), minlength=3)
        right += votes.argmax() == y[i]
    assert neighbours(h, y, 7) == pytest.approx(right / 60) and neighbours(h * 3, y, 7) == pytest.approx(right / 60)
    assert math.isnan(neighbours(h[:1], y[:1], 7)) and neighbours(h, y, 500) >= 0


def test_a_probe_finds_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=80)
    h = rng.normal(size=(80, 4))
    assert probe(h, y) < 0.75
    h[:, 2] += 9 * y
    assert probe(h, y) == 1.0 and math.isnan(probe(h[:3], np.zeros(3, int)))
    assert math.isnan(probe(h * np.nan, y))  # of a model that has diverged


def refused(method: Any = "fedavg", **changes: Any) -> list[str]:
    c = toy.config(method, **changes)
    return task_check.problems(c, toy.federation(c), methods.of(c))


def test_what_it_refuses() -> None:
    (said,) = refused(task={"kind": "ssl"})
    assert said == "task.kind: ssl makes views of images, task.data holds tabular data"
    wrong = {**VIEWS["task"], "kind": {"name": "ssl", "parts": [1], "small_area": [0.5, 2.0]}}
    found = refused(**{**VIEWS, "task": wrong})
    assert any(p.startswith("task.kind.parts: 1 found") for p in found)
    assert any(p.startswith("task.kind.small_area: ") for p in found), found
    (said,) = refused("franca")
    assert (
        said.startswith("method.name: franca needs views (several views of each input (multi-crop)); ")
        and "ssl" in said
    )


def test_training_by_any_method_brings_alike_views_together() -> None:
    done = toy.simulate(
        "fedavg", executor="vmap", rounds=4, **toy.merge(VIEWS, {"local": {"steps": 8, "optimizer": {"lr": 0.02}}})
    )
    batch = {n: torch.as_tensor(a[:60]) for n, a in done.fed.federation.arrays.items()} | {"w": torch.ones(60)}
    key = torch.tensor(keys.key(0, 0, 0, "views"))
    before, after = (float(done.fed.task.loss(s["model"], batch, key).mean()) for s in (done.initial, done.state))
    assert after < before - 0.05
