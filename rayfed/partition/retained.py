"""Rows of another task, on which it is measured what training forgets (`evaluate.retained`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

KEY = "evaluate.retained"
FORMS = ("classes", "records")


def config_of(config: Config) -> Config:
    """Return the config whose `task.data` is the other task's."""
    assert config.evaluate.retained is not None
    return config.model_copy(update={"task": config.task.model_copy(update={"data": config.evaluate.retained})})


def named(problems: list[str]) -> list[str]:
    """Return sentences about `task.data` as sentences about the other task's."""
    return [p.replace("task.data", KEY) for p in problems]


def added(
    config: Config, arrays: Mapping[str, np.ndarray], dataset: Dataset, other: Dataset
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the data arrays with the other set's test rows at their end, and the numbers of these.

    dataset: what the arrays are of; sequences of tokens get the greater of both lengths. ConfigError where one model cannot be scored
    on both.
    """
    if wrong := _unlike(config, dataset, other):
        raise ConfigError(wrong)
    rows, at = other.test, len(arrays["x"])
    new = {"x": rows.x, "y": rows.y if other.form != "records" else np.zeros(len(rows.y), arrays["y"].dtype)}
    new |= {n: rows.columns[n] for n in arrays if n not in "xy"}
    out = {}
    for n, a in arrays.items():
        width = max(a.shape[-1], new[n].shape[-1]) if n == "x" and _sequences(dataset) else None
        both = [_padded(x, width) for x in (a, new[n])]
        out[n] = np.ascontiguousarray(np.concatenate(both).astype(a.dtype, copy=False))
    return out, np.arange(at, at + len(rows.y))


def _sequences(dataset: Dataset) -> bool:
    return dataset.kind in ("text", "instruct")


def _padded(x: np.ndarray, width: int | None) -> np.ndarray:
    """Return sequences of a width, -1 at their ends."""
    if width is None or x.shape[-1] == width:
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])], constant_values=-1)


def _unlike(config: Config, dataset: Dataset, other: Dataset) -> list[str]:
    """Return why one model cannot be scored on both."""
    said = f"{KEY}: {other.name} found"
    if config.task.normalise != "none":
        return [
            f"{said}, whose rows nobody normalises by the clients' statistics (task.normalise); allowed: task.normalise: none"
        ]
    if other.form not in FORMS or other.kind != dataset.kind or other.form != dataset.form:
        return [
            f"{said}, which holds {other.form} ({other.kind}), task.data {dataset.form} ({dataset.kind}); allowed: as task.data, one of "
            f"{', '.join(FORMS)}"
        ]
    if not len(other.test.y):
        return [f"{said}, which has no test rows"]
    found = []
    if not _sequences(dataset) and other.input_shape != dataset.input_shape:
        found.append(f"{said}, whose rows have shape {other.input_shape}, those of task.data {dataset.input_shape}")
    if dataset.form != "records" and other.label_names != dataset.label_names:
        found.append(
            f"{said}, with the classes {', '.join(other.label_names[:5])} ..., task.data has "
            f"{', '.join(dataset.label_names[:5])} ..."
        )
    if other.train.columns.keys() != dataset.train.columns.keys():
        found.append(f"{said}, whose further columns are not those of task.data")
    return found
