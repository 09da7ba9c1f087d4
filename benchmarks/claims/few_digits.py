"""Five hundred handwritten digits to train on: what the claim about learned augmentation runs on."""

from __future__ import annotations

import numpy as np

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part


def few(seed: int, rows: int = 500) -> Dataset:
    """Return scikit-learn's digits with so many training rows, drawn by the seed, and all test rows."""
    whole = data.load(Named(name="digits"), seed)
    kept = np.random.default_rng(seed).permutation(len(whole.train.y))[:rows]
    train = Part(whole.train.x[kept], whole.train.y[kept])
    return Dataset(f"{rows} digits", train, whole.test, whole.classes, whole.label_names, "image")
