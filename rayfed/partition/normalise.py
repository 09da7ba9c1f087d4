"""Inputs brought to mean 0 and deviation 1 by what the clients that take part train on (`task.normalise: clients`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset


def normalised(config: Config, dataset: Dataset, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Return (x as float32, a note): each channel of images (n, C, H, W), or column of numbers (n, ...), over the rows of x that `rows`
    names. One that is constant there becomes 0 in them. ConfigError for data or a model with statistics of its own."""
    if dataset.kind not in ("image", "tabular"):
        raise ConfigError(f"task.normalise: clients found, {dataset.name} holds no images or numbers; allowed: none")
    if config.task.model.name.startswith("hf:"):
        raise ConfigError(
            f"task.normalise: clients found, {config.task.model.name} normalises as its folder says; allowed: none"
        )
    over = (0, 2, 3) if dataset.kind == "image" else (0,)
    held = x[rows].astype(np.float64)
    mean, sd = held.mean(over, keepdims=True), held.std(over, keepdims=True)
    scale = np.where(sd > 1e-9 * (1 + np.abs(mean)), sd, 1.0)
    made = ((x - mean) / scale).astype(np.float32)
    shown = [f"{name} {_listed(values)}" for name, values in (("mean", mean), ("deviation", scale))]
    return made, (
        f"inputs of {dataset.name} were normalised by the {len(rows):,} training rows of the clients (task.normalise): {', '.join(shown)}"
    )


def _listed(values: np.ndarray) -> str:
    flat = [f"{v:.6g}" for v in values.reshape(-1)]
    return f"[{', '.join(flat if len(flat) <= 8 else [*flat[:7], '...'])}]"
