"""Targets that are no classes: what rows are dealt by in their place, and what a task has to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rayfed.data import Dataset, Part

BINS = 10  # of numbers


@dataclass(frozen=True)
class Targets:
    """What y holds where that is no class. form: labels | numbers; names: of the L labels or T numbers; mean, deviation: of each number
    over the training rows, (T,)."""

    form: str
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `of` reads back."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}

    @classmethod
    def of(cls, plain: Mapping[str, Any] | None) -> Targets | None:
        """Return what `to_dict` gave; None of None."""
        if plain is None:
            return None
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
        return cls(**values)


def by_stratum(dataset: Dataset, keep: bool = True) -> tuple[Dataset, Targets | None]:
    """Return the data set with strata as its classes, what y holds being column `y`, and its targets; as it is, and None, of classes.

    A partition deals by strata, and planted groups of classes are groups of them: of labels the first one that a row has, one more
    stratum being the rows without any; of numbers `BINS` bins of the first one with as many training rows in each. keep: whether what y
    holds becomes column `y`.
    """
    if dataset.form not in ("labels", "numbers"):
        return dataset, None
    parts, y = (dataset.train, dataset.test), dataset.train.y
    kept = [p.y.astype(np.float32) for p in parts]
    if dataset.form == "labels":
        targets = Targets("labels", dataset.label_names)
        names = (*dataset.label_names, "none")
        strata = [np.where(p.y.any(1), p.y.argmax(1), p.y.shape[1]) for p in parts]
    else:
        columns = y.reshape(len(y), -1).astype(np.float64)
        deviation = columns.std(0)
        deviation = np.where(deviation > 1e-9 * (1 + np.abs(columns.mean(0))), deviation, 1.0)
        targets = Targets("numbers", dataset.label_names, tuple(columns.mean(0).tolist()), tuple(deviation.tolist()))
        edges = np.unique(np.quantile(columns[:, 0], np.arange(1, BINS) / BINS))
        ends = [f"{e:.4g}" for e in edges]
        names = tuple(f"{a or '...'} to {b or '...'}" for a, b in zip(["", *ends], [*ends, ""], strict=True))
        strata = [np.searchsorted(edges, p.y.reshape(len(p.y), -1)[:, 0], side="right") for p in parts]
    train, test = (_with(p, s, k if keep else None) for p, s, k in zip(parts, strata, kept, strict=True))
    return replace(dataset, train=train, test=test, classes=len(names), label_names=names), targets


def _with(part: Part, strata: np.ndarray, y: np.ndarray | None) -> Part:
    columns = part.columns if y is None else {**part.columns, "y": y}
    return replace(part, y=strata.astype(np.int64), columns=columns)
