"""Data sets by name, as tests ask for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part
from tests.configs import refusal


def load(name: str, seed: int = 0, /, **options: Any) -> Dataset:
    return data.load(Named.model_validate({"name": name, **options}), seed)


def check(name: str, /, **options: Any) -> list[str]:
    return data.check(Named.model_validate({"name": name, **options}))


def refused(name: str, /, **options: Any) -> str:
    """The text of the ConfigError that loading ends with."""
    return refusal(load, name, **options)


def same(a: Part, b: Part) -> bool:
    return all(
        (u is None and v is None) or (u is not None and v is not None and u.dtype == v.dtype and np.array_equal(u, v))
        for u, v in ((getattr(a, n), getattr(b, n)) for n in ("x", "y", "client", "domain", "split"))
    )


def pictures(n: int, h: int = 2, w: int = 3, c: int = 1, seed: int = 0) -> np.ndarray:
    """Bytes (n, H, W, C), 255 among them."""
    x = np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    x[0, 0, 0] = 255
    return x
