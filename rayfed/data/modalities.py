"""Rows of several modalities as one row of numbers: those of each modality in turn, and at the end for each one 1 where it is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rayfed.data import Part
from rayfed.errors import ConfigError, nearest

KINDS = {"image": 3, "text": 1, "sequence": 2, "measurements": 1}  # kind -> axes of one example


class Modality(NamedTuple):
    """Describe one modality of a data set.

    name: a word; kind: image (C, H, W) | text (L,) of word numbers, -1 where there is no more | sequence (T, c) | measurements (k,);
    shape: of one example; words: how many different words a text can have.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    words: int = 0

    @property
    def size(self) -> int:
        """Return how many numbers an example has."""
        return math.prod(self.shape)

    @property
    def blank(self) -> float:
        """Return what stands where it is absent, which nothing reads."""
        return -1.0 if self.kind == "text" else 0.0


def of(plain: Sequence[Any]) -> tuple[Modality, ...]:
    """Return modalities from plain lists, as they stand in files."""
    return tuple(Modality(str(n), str(k), tuple(int(s) for s in shape), int(words)) for n, k, shape, words in plain)


def presence(x: np.ndarray, modalities: Sequence[Modality]) -> np.ndarray:
    """Return which modalities are there in rows x, (n, M) bool."""
    return np.asarray(x[:, -len(modalities) :] > 0)


def masked(x: np.ndarray, modalities: Sequence[Modality], there: np.ndarray) -> np.ndarray:
    """Return rows x with these modalities there alone, (n, M) bool; what is absent holds its blank, so that nothing of it is left."""
    out, at = x.copy(), 0
    for i, m in enumerate(modalities):
        out[~there[:, i], at : at + m.size] = m.blank
        at += m.size
    out[:, at:] = there
    return out


def part(
    modalities: Sequence[Modality],
    values: Mapping[str, Any],
    y: Any,
    there: Mapping[str, Any] | None = None,
    *,
    client: Any = None,
    domain: Any = None,
    split: Any = None,
) -> Part:
    """Pack columns into the rows of a data set of kind `modalities`.

    Arguments:
        modalities: in the order in which rows hold them.
        values: name -> (n, *shape) numbers of each modality.
        y: (n,) classes.
        there: name -> (n,) true where a row has that modality; default everywhere.
        client, domain, split: as in `rayfed.data.Part`.

    Raises ConfigError naming the modality: one that is missing or unknown, of another shape, with NaN or infinite numbers (of absent rows
    too: what is absent is said by `there`, and may hold any finite number), and for rows that have none.

    Example:

        >>> of_two = (Modality("picture", "image", (1, 2, 2)), Modality("age", "measurements", (1,)))
        >>> made = part(of_two, {"picture": np.ones((3, 1, 2, 2)), "age": [[4], [0], [9]]}, [0, 1, 0], {"age": [1, 0, 1]})
        >>> made.x[1].tolist()
        [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    """
    names, n = [m.name for m in modalities], len(np.asarray(y))
    problems = []
    for kind, given in (("values", values), ("there", there or {})):
        problems += [
            f"{kind}: {u!r} is no modality{nearest(u, names)}; there are: {', '.join(names)}"
            for u in given
            if u not in names
        ]
    columns, flags = [], np.ones((n, len(names)), bool)
    for i, m in enumerate(modalities):
        if m.name not in values:
            problems.append(f"values: modality {m.name!r} is missing")
            continue
        flags[:, i] = np.asarray((there or {}).get(m.name, True), bool)
        found, wrong = _column(m, values[m.name], flags[:, i])
        columns.append(found)
        problems += wrong
    problems = problems or [
        f"there: row {r} has no modality; allowed: at least one of {', '.join(names)}"
        for r in np.flatnonzero(~flags.any(1))[:1]
    ]
    if problems:
        raise ConfigError(problems)
    x = np.concatenate([*columns, flags.astype(np.float32)], 1)
    client, domain, split = (None if a is None else np.asarray(a, str) for a in (client, domain, split))
    return Part(masked(x, modalities, flags), np.asarray(y, np.int64), client, domain, split)


def _column(m: Modality, given: Any, there: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return one modality's numbers (n, size) float32, and what is wrong with them."""
    a, n = np.asarray(given), len(there)
    empty = np.zeros((n, m.size), np.float32)
    if a.dtype.kind not in "fiub" or a.shape != (n, *m.shape):
        wanted = ", ".join(map(str, (n, *m.shape)))
        return empty, [f"modality {m.name!r}: {a.dtype} {a.shape} found, needed: numbers ({wanted})"]
    a = a.reshape(n, -1).astype(np.float32)
    if not np.isfinite(a).all():
        row = int(np.argmax(~np.isfinite(a).all(1)))
        where = "" if there[row] else ", in which it is absent"
        return empty, [
            f"modality {m.name!r}: NaN or infinite numbers in row {row}{where}; allowed: finite numbers, what is absent is said by `there`"
        ]
    if m.kind == "text" and ((a < -1) | (a >= m.words) | (a != np.rint(a))).any():
        return empty, [f"modality {m.name!r}: word {a.min():g} to {a.max():g} found, allowed: -1 to {m.words - 1}"]
    return a, []


def problems(x: np.ndarray, modalities: Sequence[Modality], which: str) -> list[str]:
    """Return what is wrong with packed rows of a data set: their width, numbers that are not finite (of absent modalities too), flags other
    than 0 and 1, rows without any modality, and a modality that no row has."""
    if not modalities:
        return [f"{which}: kind modalities found without `modalities`, the names, kinds and shapes of what a row holds"]
    unknown = [
        m for m in modalities if m.kind not in KINDS or len(m.shape) != KINDS[m.kind] or not m.name.isidentifier()
    ]
    if unknown:
        return [
            f"{which}: modality {unknown[0].name!r} of kind {unknown[0].kind!r} and shape {unknown[0].shape} found; allowed: a word, and "
            f"kinds {', '.join(f'{k} of {n} axes' for k, n in KINDS.items())}"
        ]
    width = sum(m.size for m in modalities) + len(modalities)
    if x.ndim != 2 or x.shape[1] != width:
        return [f"{which}: x {x.shape} found, needed: (n, {width}), as `rayfed.data.modalities.part` makes it"]
    at, there = 0, x[:, -len(modalities) :]
    for i, m in enumerate(modalities):
        bad = ~np.isfinite(x[:, at : at + m.size]).all(1)
        if bad.any():
            row = int(np.argmax(bad))
            absent = "" if there[row, i] > 0 else ", in which it is absent"
            return [
                f"{which}: modality {m.name!r} holds NaN or infinite numbers in row {row}{absent}; allowed: finite numbers"
            ]
        at += m.size
    if not np.isin(there, (0, 1)).all():
        return [f"{which}: the last {len(modalities)} numbers of a row say what is there; allowed: 0 and 1"]
    if len(x) and not there.any(1).all():
        return [f"{which}: row {int(np.argmin(there.any(1)))} has no modality; allowed: at least one"]
    nobody = [m.name for i, m in enumerate(modalities) if len(x) and which == "train" and not there[:, i].any()]
    return [f"{which}: no row has modality {nobody[0]!r}; allowed: modalities that some row has"] if nobody else []
