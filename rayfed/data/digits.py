"""scikit-learn's bundled handwritten digits: the embedded default."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, unknown_options

if TYPE_CHECKING:
    from rayfed.config.schema import Named

TEST = 360


def check(spec: Named) -> list[str]:
    return unknown_options(spec, ())


def load(spec: Named, seed: int) -> Dataset:
    """Return 1,797 images (1, 8, 8); the 360 test images are the same for every seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = (found.images / 16.0).astype(np.float32)[:, None], found.target.astype(np.int64)
    order = keys.numpy(keys.key(0, 0, -1, "digits test rows")).permutation(len(y))
    # Round-robin over classes, so that the pooled test set holds every digit in its share.
    rank = np.empty(len(y), np.int64)
    for c in range(10):
        mine = order[y[order] == c]
        rank[mine] = np.arange(len(mine))
    chosen = np.sort(order[np.argsort(rank[order], kind="stable")][:TEST])
    test = np.zeros(len(y), bool)
    test[chosen] = True
    return Dataset("digits", Part(x[~test], y[~test]), Part(x[test], y[test]), 10, tuple(map(str, range(10))), "image")
