"""A user's own function: `path/to/file.py:function`, called as function(seed, **options)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed.config.user_function import check_function, load_function
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Named


def check(spec: Named) -> list[str]:
    return check_function(spec.name, "task.data", spec.options, 1)


def load(spec: Named, seed: int) -> Dataset:
    """What the function returns, with its arrays checked. An error inside it stays the cause of the ConfigError."""
    call = load_function(spec.name, "task.data")
    try:
        made = call(seed, **spec.options)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"task.data: {spec.name} raised {type(e).__name__}: {e}") from e
    if not isinstance(made, Dataset):
        raise ConfigError(f"task.data: {spec.name} returned {type(made).__name__}, needed: rayfed.data.Dataset")
    wrong = [f"task.data: {spec.name}: {p}" for p in _wrong(made)]
    if wrong:
        raise ConfigError(wrong)
    train, test = (
        Part(np.ascontiguousarray(p.x, np.float32), np.ascontiguousarray(p.y, np.int64), p.client, p.domain, p.split)
        for p in (made.train, made.test)
    )
    notes = tuple(map(str, made.notes))
    return Dataset(made.name, train, test, int(made.classes), tuple(map(str, made.label_names)), made.kind, notes)


def _wrong(d: Dataset) -> list[str]:
    out = []
    if d.kind not in ("image", "tabular"):
        out.append(f"kind {d.kind!r} found, allowed: image, tabular")
    if not len(d.train.y):
        out.append("it has no training rows")
    if len(d.label_names) != d.classes:
        out.append(f"{len(d.label_names)} label names for {d.classes} classes")
    for which, p in (("train", d.train), ("test", d.test)):
        x, y = np.asarray(p.x), np.asarray(p.y)
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "iu" or y.ndim != 1 or len(x) != len(y):
            out.append(
                f"{which}: x {x.dtype} {x.shape} and y {y.dtype} {y.shape} found, needed: numbers (n, ...) and whole numbers (n,)"
            )
        elif x.shape[1:] != np.shape(d.train.x)[1:] or x.ndim < 2 or (d.kind == "image" and x.ndim != 4):
            out.append(f"{which}: x of shape {x.shape} found, needed: (n, C, H, W) for images, (n, features) otherwise")
        elif len(y) and (y.min() < 0 or y.max() >= d.classes):
            out.append(f"{which}: labels {y.min()} to {y.max()} found, allowed: 0 to {d.classes - 1}")
        out += [
            f"{which}.{n}: {len(a)} values for {len(y)} rows"
            for n, a in (("client", p.client), ("domain", p.domain), ("split", p.split))
            if a is not None and len(a) != len(y)
        ]
    return out
