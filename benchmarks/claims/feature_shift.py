"""Handwritten digits in four styles, and a small network with BatchNorm: what the claim about FedBN runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part

STYLES = ("plain", "inverted", "dim", "pale")


def in_style(x: np.ndarray, name: str) -> np.ndarray:
    """Return images in [0, 1] in one style."""
    changed = {"plain": x, "inverted": 1 - x, "dim": 0.3 * x, "pale": 0.6 + 0.4 * x}
    return changed[name].astype(np.float32)


def looks(seed: int) -> Dataset:
    """Return the digits with each row in one style, which is its domain."""
    plain = data.load(Named(name="digits"), seed)
    rng = np.random.default_rng(seed)
    parts = []
    for part in (plain.train, plain.test):
        domain = rng.integers(len(STYLES), size=len(part.y))
        x = np.stack([in_style(image, STYLES[d]) for image, d in zip(part.x, domain, strict=True)])
        parts.append(Part(x, part.y, domain=np.array(STYLES)[domain]))
    return Dataset("digits in four styles", *parts, plain.classes, plain.label_names, "image")


def network(classes: int, input_shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Return two convolutions with BatchNorm and a linear layer, for images (B, C, H, W) with even H and W."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * (height // 2) * (width // 2), classes),
    )  # fmt: skip
