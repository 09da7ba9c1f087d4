"""scikit-learn's bundled handwritten digits: the embedded default."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, unknown_options

if TYPE_CHECKING:
    from rayfed.config.schema import Named

TEST = 360


def check(spec: Named) -> list[str]:
    return unknown_options(spec, ())


def _file() -> Path:
    """Return the data's place in scikit-learn, which is not imported for it: that takes longer than a small run."""
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"


def load(spec: Named, seed: int) -> Dataset:
    """Return 1,797 images (1, 8, 8); the 360 test images are the same for every seed."""
    with gzip.open(_file()) as file:
        table = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, then the digit
    x, y = (table[:, :-1].reshape(-1, 1, 8, 8) / 16.0).astype(np.float32), table[:, -1].astype(np.int64)
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
