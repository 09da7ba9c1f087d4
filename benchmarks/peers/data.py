"""Data of the workloads, made here: rayfed takes them by `path/to/data.py:images` and `parquet:`."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def images(seed: int, *, examples: int):
    """Return the 8x8 digits of scikit-learn on 28x28, shifted and with noise, `examples` of them for training."""
    from sklearn.datasets import load_digits

    from rayfed.data import Dataset, Part

    rng = np.random.default_rng(seed)
    digits = load_digits()
    big = np.kron(digits.images / 16, np.ones((3, 3))).astype(np.float32)  # 24x24

    def draw(rows: np.ndarray) -> Part:
        x = rng.random((len(rows), 1, 28, 28), np.float32) * 0.4
        for a, b in np.ndindex(5, 5):
            here = np.flatnonzero((np.arange(len(rows)) % 25) == 5 * a + b)
            x[here, 0, a : a + 24, b : b + 24] += big[rows[here]]
        return Part(x.clip(max=1), digits.target[rows].astype(np.int64))

    train = draw(rng.integers(0, 1437, examples))
    return Dataset("images", train, draw(np.arange(1437, 1797)), 10, tuple("0123456789"), "image")


def texts(where: Path, clients: int, each: int) -> None:
    """Write four classes of texts that differ in their frequent words; `each` training texts of some 30 words per client."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from cohorts import WORDS

    rng = np.random.default_rng(0)
    odds = rng.dirichlet(np.full(len(WORDS), 0.5), 4)
    for name, n in (("train", clients * each), ("test", 200)):
        y = np.arange(n) % 4
        x = [" ".join(rng.choice(WORDS, 32, p=odds[c])) for c in y]
        pq.write_table(pa.table({"text": x, "label": y}), where / f"{name}.parquet")
