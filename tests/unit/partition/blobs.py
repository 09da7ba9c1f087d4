"""Gaussian classes, with domains and without, and configs that split them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from rayfed import data
from rayfed.config.schema import Config, Named
from rayfed.data import Dataset, Part
from rayfed.partition import Federation

HOLD = {"kind": "clients", "fraction": 0.2}


def conf(seed: int = 0, /, **f: Any) -> Config:
    task = {"data": "digits", "model": "linear"}  # `build` is given its data, so the name does not matter
    f = {"clients": 10, "split": {"test": 0}, **f}
    return Config.from_dict({"seed": seed, "task": task, "method": "fedavg", "federation": f})


def blobs(examples: int = 400, classes: int = 4, **options: Any) -> Dataset:
    spec = {"name": "synthetic:blobs", "examples": examples, "classes": classes, "test": 80, "features": 6, **options}
    return data.load(Named.model_validate(spec), 0)


def with_domains(d: Dataset, names: Any, test_names: Any) -> Dataset:
    a, b = np.array(names), np.array(test_names)
    return replace(d, train=replace(d.train, domain=a), test=replace(d.test, domain=b))


BLOBS = blobs()


N = len(BLOBS.train.y)


RNG = np.random.default_rng(3)


FLAT = np.zeros((480, 1), np.float32)


EVEN = Dataset(
    "even", Part(FLAT[:400], np.arange(400) % 4), Part(FLAT[400:], np.arange(80) % 4), 4, tuple("0123"), "tabular"
)


DOMAINS = with_domains(
    BLOBS, RNG.choice(["cam", "lab", "web", ""], N, p=[0.5, 0.3, 0.15, 0.05]), RNG.choice(["cam", "lab", "new"], 80)
)


def domain_counts(f: Federation, d: Dataset) -> np.ndarray:
    """(N, D) rows of each client, by a loop."""
    names = sorted(set(d.train.domain) - {""})
    return np.array([[(d.train.domain[f.train[k]] == n).sum() for n in names] for k in range(f.clients)])
