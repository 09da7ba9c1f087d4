"""Small data sets whose rows can be recognised, and configs that split them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.config.schema import Config
from rayfed.data import Dataset, Part
from rayfed.partition import Federation, Index

CLASSES = 5


def conf(seed: int = 0, /, **f: Any) -> Config:
    for k in ("partition", "groups"):
        if isinstance(f.get(k), str):
            f[k] = {"kind": f[k]}
    task = {"data": "digits", "model": "linear"}  # `build` is given its data, so the name does not matter
    return Config.from_dict({"seed": seed, "task": task, "method": "fedavg", "federation": f})


def marked(n: int, first: int = 0) -> np.ndarray:
    """Images (n, 1, 2, 2) whose pixels encode the row and the corner."""
    return (np.arange(n * 4, dtype=np.float32) + 4 * first).reshape(n, 1, 2, 2)


def images(train: int = 300, test: int = 80, classes: int = CLASSES) -> Dataset:
    """Marked images with random labels, 12 natural clients in both parts and three more whose rows are all test rows."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, classes, train + test)
    owner = np.sort(rng.choice([f"p{i:02d}" for i in range(12)], train, p=np.arange(3, 15) / 102))
    known = np.unique(owner)
    second = np.where(np.arange(test) < test // 2, rng.choice(known, test), rng.choice(["q0", "q1", "q2"], test))
    split = np.where(np.char.startswith(second, "q"), "test_unseen", "test")
    a = Part(marked(train), y[:train], owner, None, np.where(rng.random(train) < 0.1, "valid", "train"))
    b = Part(marked(test, train), y[train:], second, None, split)
    return Dataset("marked", a, b, classes, tuple(map(str, range(classes))), "image")


def table(y: Any, classes: int | None = None, test: int = 0, clients: Any = None) -> Dataset:
    """One feature, the row's number; natural clients where they are given."""
    y = np.asarray(y, np.int64)
    c = classes or int(y.max()) + 1
    x = np.arange(len(y) + test, dtype=np.float32)[:, None]
    a = Part(x[: len(y)], y, None if clients is None else np.asarray(clients))
    return Dataset("table", a, Part(x[len(y) :], np.arange(test) % c), c, tuple(map(str, range(c))), "tabular")


DATA = images()


N_TRAIN, N_TEST = len(DATA.train.y), len(DATA.test.y)


KINDS: dict[str, dict[str, Any]] = {
    "iid": {"kind": "iid", "min_examples": 3},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.3, "min_examples": 4},
    "shards": {"kind": "shards", "per_client": 2},
    "natural": {"kind": "natural", "min_examples": 5},
}


GROUPS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "rotation": {"kind": "rotation", "count": 3},
    "label_permutation": {"kind": "label_permutation", "count": 3},
    "classes": {"kind": "classes", "count": 2},
}


HOLD = {"kind": "clients", "fraction": 0.2}


def parts(f: Federation) -> list[Index]:
    return [f.train, f.val, f.test]
