"""From columns of a table to examples: what Parquet folders and `datasets` share."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError


def fraction_problems(value: Any) -> list[str]:
    """What is wrong with option `test` as a share of the training rows."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        return [f"task.data.test: {value!r} found, allowed: a share of the training rows, e.g. 0.2"]
    return []


def labels(
    parts: list[Any], column: str, where: str, label_names: tuple[str, ...] = ()
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """([y (n,) int64 per part], name of each class) from whole numbers >= 0, or from text, whose sorted values are the classes.

    `label_names`: the classes where the file names them. ConfigError for missing, negative, fractional or unknown labels.
    """
    setting = f"task.data.label: column {column!r} of {where}"
    arrays = [np.asarray(p) for p in parts]
    kinds = {a.dtype.kind for a in arrays if a.size}
    if kinds <= {"U", "S", "O"} and kinds:
        texts = [a.astype(object) for a in arrays]
        if any(not isinstance(v, str) for a in texts for v in a):
            raise ConfigError(f"{setting} has rows without a label")
        found = label_names or tuple(sorted({v for a in texts for v in a}))
        number = {n: i for i, n in enumerate(found)}
        unknown = sorted({v for a in texts for v in a} - number.keys())
        if unknown:
            raise ConfigError(f"{setting} holds {unknown[0]!r}, its label names are {', '.join(found)}")
        return [np.array([number[v] for v in a], np.int64) for a in texts], found
    if not kinds <= {"i", "u"}:
        raise ConfigError(f"{setting} holds {arrays[0].dtype}, allowed: whole numbers from 0, or text, in every row")
    low, high = (int(f([f(a) for a in arrays if a.size] or [0])) for f in (np.min, np.max))
    if low < 0:
        raise ConfigError(f"{setting} holds {low}, allowed: whole numbers from 0")
    classes = high + 1
    if label_names and classes > len(label_names):
        raise ConfigError(f"{setting} holds class {classes - 1}, but {len(label_names)} label names are given")
    if classes > 100_000:
        raise ConfigError(f"{setting} holds {classes - 1}: labels count from 0 without large gaps")
    return [a.astype(np.int64) for a in arrays], label_names or tuple(map(str, range(classes)))


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Feature columns (n, f) with mean 0 and deviation 1 over the training rows, as float32.

    A missing measurement (NaN) says nothing and becomes the training rows' mean. ConfigError for infinite values.
    """
    endless = int(np.isinf(train).any(1).sum() + np.isinf(test).any(1).sum())
    if endless:
        raise ConfigError(f"task.data: {endless} rows hold infinite features; allowed: finite numbers, or missing ones")
    known = ~np.isnan(train)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, train, 0).sum(0) / count
    sd = np.sqrt((np.where(known, train - mean, 0) ** 2).sum(0) / count)
    scale = np.where(sd > 1e-9 * (1 + np.abs(mean)), sd, 1.0)  # a constant column carries nothing and stays 0

    def one(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), 0.0, (x - mean) / scale).astype(np.float32)

    return one(train), one(test)
