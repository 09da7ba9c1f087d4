"""Data sets: one file per source. A source gives labelled training and test rows as NumPy arrays."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError, nearest, refusing

if TYPE_CHECKING:
    from rayfed.config.schema import Named

SOURCES = {"digits": "digits", "parquet": "parquet", "hf": "hub", "synthetic": "synthetic"}  # head of the name -> file


@dataclass(frozen=True)
class Part:
    """Rows: x (n, ...) float32 (images (n, C, H, W) in [0, 1]), or texts (n,) as objects until they are token ids (n, L)
    int32, or instruction, input and response (n, 3) as objects until they are ids and targets (n, 2, L) int32; y (n,) int64;
    natural client, domain, split (n,) str.

    split: train | valid | test | test_unseen (a client without training rows). An empty client name means none.
    """

    x: np.ndarray
    y: np.ndarray
    client: np.ndarray | None = None
    domain: np.ndarray | None = None
    split: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Part:
        """Return these rows."""
        rest = (None if a is None else a[rows] for a in (self.client, self.domain, self.split))
        return Part(self.x[rows], self.y[rows], *rest)


@dataclass(frozen=True)
class Dataset:
    """A named data set; kind: image | tabular | text | instruct; notes: what a reader of results should know of how it was read."""

    name: str
    train: Part
    test: Part
    classes: int
    label_names: tuple[str, ...]
    kind: str
    notes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one example: (C, H, W) or (features,)."""
        return tuple(self.train.x.shape[1:])


def names() -> list[tuple[str, str]]:
    """Return (name, one sentence) of every source, for `rayfed tasks`."""
    return [
        ("digits", "1,797 real handwritten digits of 8x8 pixels (scikit-learn), 360 of them the pooled test set"),
        (
            "parquet:DIR",
            "train.parquet and test.parquet: images, texts, instructions with responses, or numeric columns; a label, maybe client "
            "and domain",
        ),
        ("hf:NAME_OR_PATH", "a labelled set through the `datasets` library, from the hub or a local folder"),
        ("synthetic:blobs", "Gaussian classes in `features` dimensions"),
        ("synthetic:images", "images of one smooth pattern per class under noise"),
        ("synthetic:logistic", "synthetic(alpha, beta) of Li et al. 2020 with natural clients"),
        ("path/to/file.py:function", "your own function (seed, **options) -> rayfed.data.Dataset"),
    ]


def _source(spec: Named) -> Any:
    head, colon, rest = spec.name.partition(":")
    if ".py:" in spec.name or spec.name.endswith(".py"):
        return importlib.import_module("rayfed.data.own")
    known = [n for n, _ in names()]
    if head not in SOURCES or (head == "digits" and colon):
        raise ConfigError(
            f"task.data: {spec.name!r} is unknown{nearest(spec.name, [*SOURCES, *known])}; known: {', '.join(known)}"
        )
    if head != "digits" and not rest:
        raise ConfigError(
            f"task.data: {spec.name!r} is not complete; known: {', '.join(k for k in known if k.startswith(head))}"
        )
    return importlib.import_module(f"rayfed.data.{SOURCES[head]}")


def check(spec: Named) -> list[str]:
    """Return what is wrong with `task.data`, without loading it."""
    try:
        with refusing(f"task.data: {spec.name} cannot be read"):
            return list(_source(spec).check(spec))
    except ConfigError as e:
        return e.problems


def load(spec: Named, seed: int) -> Dataset:
    """Return the data set. ConfigError if it cannot be had as described."""
    with refusing(f"task.data: {spec.name} cannot be read"):
        source = _source(spec)
        problems = list(source.check(spec))
        if problems:
            raise ConfigError(problems)
        made: Dataset = source.load(spec, seed)
    if not len(made.test.y):
        made = replace(made, notes=(*made.notes, f"{made.name} has no test rows: no score of one pooled test set"))
    return made


def unknown_options(spec: Named, known: tuple[str, ...]) -> list[str]:
    """Return a sentence for every option that the source does not have."""
    return [
        f"task.data.{o}: unknown option of {spec.name}{nearest(o, known)}; known: {', '.join(known) or 'none'}"
        for o in spec.options if o not in known
    ]  # fmt: skip


def stratified(y: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (n,) of about `fraction` of the rows: the same share of every class, at least one row of each that has two."""
    mask = np.zeros(len(y), bool)
    for c in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == c))
        mask[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return mask
