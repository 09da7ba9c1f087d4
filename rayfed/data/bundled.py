"""Small real tables that scientific libraries bring along (scikit-learn): `sklearn:NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.data import BUNDLED, Dataset, Part, stratified, unknown_options
from rayfed.data.columns import standardised
from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

TEST = 0.25  # share of the rows that is the test part


def check(spec: Named) -> list[str]:
    """Return what is wrong with the name or the options."""
    name = spec.name.partition(":")[2]
    if name not in BUNDLED:
        known = [f"sklearn:{n}" for n in BUNDLED]
        return [f"task.data: {spec.name!r} is unknown{nearest(spec.name, known)}; known: {', '.join(known)}"]
    return unknown_options(spec, ())


def load(spec: Named, seed: int) -> Dataset:
    """Return the table, its features with mean 0 and deviation 1 over the training rows; its test rows are the same for every seed."""
    from sklearn import datasets

    name = spec.name.partition(":")[2]
    found = getattr(datasets, f"load_{name}")()
    x, y = np.asarray(found.data, np.float64), np.asarray(found.target)
    numbers = name in ("diabetes", "linnerud")
    names = ("progression",) if name == "diabetes" else tuple(map(str, found.target_names))
    y = y.astype(np.float32) if numbers else y.astype(np.int64)
    rng = keys.numpy(keys.key(0, 0, -1, f"sklearn {name} test rows"))
    test = stratified(np.zeros(len(x), np.int64) if numbers else y, TEST, rng)
    features = [str(n) for n in found.feature_names]
    a, b = standardised(x[~test], x[test], features, spec.name)
    return Dataset(spec.name, Part(a, y[~test]), Part(b, y[test]), len(names), names, "tabular")
