"""Your data: a function from a seed and the config's other keys to training rows and test rows."""

import numpy as np

from rayfed.data import Dataset, Part


def load(seed, rows=2000):
    """Return two interleaved spirals: replace this by your own rows.

    From a table: `table = pandas.read_csv("mine.csv")`, x = table[["a", "b"]].to_numpy("float32"), y = table["label"].to_numpy().
    Images are x of shape (n, channels, height, width), texts a list of strings. The kind is tabular, image or text.
    Where rows belong to clients, say so: Part(x, y, client=names), and partition: {kind: natural} in the config.
    """
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, rows)
    t = draw.uniform(0.5, 3, rows)
    angle = 2 * t + np.pi * y
    x = np.stack([t * np.cos(angle), t * np.sin(angle)], 1) + draw.normal(0, 0.05, (rows, 2))
    test = rows // 5  # the pooled test set; clients also keep a part of their own rows for testing
    return Dataset("spirals", Part(x[test:], y[test:]), Part(x[:test], y[:test]), 2, ("one", "other"), "tabular")
