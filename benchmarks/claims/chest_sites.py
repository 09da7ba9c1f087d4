"""Chest X-rays of children as five sites of unequal size, one of them changed: what the claim about sites runs on."""

from __future__ import annotations

import numpy as np

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part

SHARES = {
    "small": 0.05,
    "medium": 0.1,
    "large": 0.25,
    "largest": 0.6,
}  # of four fifths of the rows; a fifth is `shifted`


def sites(seed: int, folder: str) -> Dataset:
    """Return the pictures with two labels, normal and pneumonia, each row at a site, and column `positive`: of a
    site's training rows those without a label over those with it. The site `shifted` is constructed: less contrast, brighter,
    noisier. A fifth of the test rows is each site's."""
    whole = data.load(Named.model_validate({"name": f"parquet:{folder}"}), seed)
    rng, parts = np.random.default_rng(seed), []
    names = np.array([*SHARES, "shifted"])
    for part, train in ((whole.train, True), (whole.test, False)):
        n = len(part.y)
        shares = np.array([0.8 * s for s in SHARES.values()] + [0.2]) if train else np.full(5, 0.2)
        site = rng.permutation(np.repeat(np.arange(5), np.diff(np.rint(np.append(0, shares.cumsum()) * n).astype(int))))
        y = np.stack([part.y == 0, part.y == 1], 1).astype(np.int64)
        x = part.x.copy()
        away = site == 4
        x[away] = np.clip(0.6 * x[away] + 0.3 + 0.08 * rng.normal(size=x[away].shape), 0, 1)
        positive = np.ones((n, 2), np.float32)
        for k in range(5) if train else ():
            has = y[site == k].sum(0)
            positive[site == k] = ((site == k).sum() - has) / (has + 1e-6)
        split = np.full(n, "train" if train else "test")
        parts.append(Part(x, y, names[site], None, split, {"positive": positive}))
    return Dataset("chest X-rays at five sites", *parts, 2, ("normal", "pneumonia"), "image")
