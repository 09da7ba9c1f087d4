"""Generated sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed.config.schema import Named
from rayfed.data import synthetic
from tests.unit.data.sets import check, load, refused, same

SMALL: dict[str, dict[str, Any]] = {
    "blobs": {"examples": 200, "test": 40, "classes": 4, "features": 5},
    "images": {"examples": 90, "test": 30, "classes": 3, "size": 6, "channels": 2},
    "logistic": {"examples": 600, "clients": 7, "classes": 3, "features": 8},
}


@pytest.mark.parametrize("kind", SMALL)
def test_generators_draw_from_the_seed_alone(kind: str) -> None:
    first, again, other = (load(f"synthetic:{kind}", s, **SMALL[kind]) for s in (3, 3, 4))
    assert same(first.train, again.train) and same(first.test, again.test)
    n = min(len(first.train.y), len(other.train.y))
    assert not np.array_equal(first.train.x[:n], other.train.x[:n])
    assert not np.array_equal(first.train.y[:n], other.train.y[:n])


@pytest.mark.parametrize(
    ("kind", "shape", "what"), [("blobs", (5,), "tabular"), ("images", (2, 6, 6), "image")]
)  # fmt: skip
def test_generated_sets_have_the_asked_shapes_and_even_classes(kind: str, shape: tuple[int, ...], what: str) -> None:
    o = SMALL[kind]
    d = load(f"synthetic:{kind}", 1, **o)
    assert (d.kind, d.input_shape, d.classes) == (what, shape, o["classes"])
    assert d.train.x.shape == (o["examples"], *shape) and d.test.x.shape == (o["test"], *shape)
    assert (d.train.x.dtype, d.train.y.dtype) == (np.float32, np.int64)
    every = np.bincount(np.concatenate([d.train.y, d.test.y]))
    assert every.tolist() == [(o["examples"] + o["test"]) // o["classes"]] * o["classes"]
    assert d.train.client is None and d.label_names == tuple(map(str, range(o["classes"])))


def test_blobs_are_gaussians_of_the_asked_noise_and_separation() -> None:
    o = {"examples": 6000, "test": 0, "classes": 3, "features": 40}
    d = load("synthetic:blobs", 0, **o, noise=0.5, separation=3.0)
    centres = np.stack([d.train.x[d.train.y == c].mean(0) for c in range(3)])
    assert (d.train.x - centres[d.train.y]).std() == pytest.approx(0.5, rel=0.02)
    assert centres.std() == pytest.approx(3.0, rel=0.2)
    assert len(d.test.y) == 0 and d.test.x.shape == (0, 40)
    exact = load("synthetic:blobs", 0, **o, noise=0)
    assert len(np.unique(exact.train.x, axis=0)) == 3


def test_images_are_one_pattern_per_class_under_noise() -> None:
    d = load("synthetic:images", 2, **SMALL["images"], noise=0)
    patterns = [np.unique(d.train.x[d.train.y == c], axis=0) for c in range(3)]
    assert [len(p) for p in patterns] == [1, 1, 1]
    for p in patterns:
        assert p.min((0, 2, 3)).tolist() == [0, 0] and p.max((0, 2, 3)) == pytest.approx([1, 1])
    noisy = load("synthetic:images", 2, **SMALL["images"])
    assert noisy.train.x.min() >= 0 and noisy.train.x.max() <= 1
    clear = np.concatenate(patterns)[noisy.train.y]
    assert 0.1 < (noisy.train.x - clear).std() < 0.3  # 0.3 before clipping


def test_logistic_has_natural_clients_with_a_tenth_of_test_rows() -> None:
    d = load("synthetic:logistic", 5, **SMALL["logistic"])
    assert d.kind == "tabular" and d.input_shape == (8,)
    names = [str(k) for k in range(7)]
    assert sorted(set(d.train.client)) == names == sorted(set(d.test.client))
    assert set(d.train.split) == {"train"} and set(d.test.split) == {"test"}
    train, test = ([int((p.client == k).sum()) for k in names] for p in (d.train, d.test))
    sizes = np.add(train, test)
    assert sizes.min() >= 10 and test == (sizes // 10).tolist() and sizes.std() > 20
    assert 600 - 7 <= sizes.sum() <= 600 + 70


def test_logistic_labels_are_the_best_of_one_linear_map_per_client() -> None:
    """With two classes a hyperplane separates them inside every client, but not in all of them together."""
    from sklearn.linear_model import LogisticRegression

    d = load("synthetic:logistic", 1, examples=1500, clients=5, classes=2, features=4)

    def fit(rows: np.ndarray) -> float:
        x, y = d.train.x[rows].astype(float), d.train.y[rows]
        if len(set(y)) == 1:
            return 1.0
        x = (x - x.mean(0)) / x.std(0)
        return float(LogisticRegression(C=1e6, max_iter=5000).fit(x, y).score(x, y))

    scores = [fit(d.train.client == str(k)) for k in range(5)]
    assert min(scores) > 0.99
    assert len({k for k in range(5) if len(set(d.train.y[d.train.client == str(k)])) == 2}) >= 2
    assert fit(np.ones(len(d.train.y), bool)) < 0.97


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("blobs", {"clases": 3}, ".clases: unknown option of synthetic:blobs (did you mean 'classes'?)"),
        ("blobs", {"classes": 1}, ".classes: 1 found, allowed: a whole number >= 2"),
        ("blobs", {"classes": 3.0}, ".classes: 3.0 found, allowed: a whole number >= 2"),
        ("blobs", {"features": True}, ".features: True found, allowed: a whole number >= 1"),
        ("blobs", {"noise": -1}, ".noise: -1 found, allowed: a number >= 0"),
        ("images", {"size": 1}, ".size: 1 found, allowed: a whole number >= 2"),
        ("logistic", {"alpha": "big"}, ".alpha: 'big' found, allowed: a number >= 0"),
    ],
)
def test_wrong_options_of_generators(kind: str, options: dict[str, Any], says: str) -> None:
    (problem,) = check(f"synthetic:{kind}", **options)
    assert problem.startswith("task.data" + says)
    assert refused(f"synthetic:{kind}", **options) == problem


def test_a_set_larger_than_memory_is_refused() -> None:
    (problem,) = synthetic.check(Named.model_validate({"name": "synthetic:blobs", "examples": 10**12}))
    assert problem.startswith("task.data: synthetic:blobs of 1,000,000,001,010 rows of 16 numbers takes 128,000 GB, ")


def test_shapes_are_called_after_colour_and_shape() -> None:
    d = load("synthetic:shapes", 0, classes=12, examples=60, test=12, noise=0, shift=0)
    assert d.label_names[:2] == ("red circle", "green square") and len(set(d.label_names)) == 12
    for c, name in enumerate(d.label_names):
        x = d.train.x[d.train.y == c][0]
        paint = np.asarray(synthetic.COLOURS[name.split()[0]], np.float32)
        assert {tuple(p) for p in np.unique(x.reshape(3, -1).T, axis=0)} == {(0.0, 0.0, 0.0), tuple(paint)}
    assert "task.data.classes: 31 found, allowed: at most 30" in refused("synthetic:shapes", classes=31)
