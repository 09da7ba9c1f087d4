"""Planted groups: clients that differ in a way that is known, so that clustering can be judged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayfed.errors import ConfigError

_WHOLE = re.compile(r"-?\d+")


def _listed(names: Sequence[str]) -> str:
    """Return classes in words: the ends of a range, or their names."""
    counted = tuple(names) == tuple(map(str, range(len(names))))
    return f"0 to {len(names) - 1}" if counted else ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def domains(dataset: Any, setting: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return (sorted names of the training rows' domains, domain number of each training row, of each test row).

    -1: a row without a domain (an empty name), and a test row of a domain that no training row has. ConfigError naming
    `setting` if the data carries no domains.
    """
    train, test = dataset.train.domain, dataset.test.domain
    found = np.unique(train) if train is not None else np.array([], str)
    found = found[found != ""]
    if not len(found):
        raise ConfigError(
            f"{setting}: domain found, but {dataset.name} has no domain column; allowed: another kind, or data whose rows "
            "name their domains (parquet and hf: task.data.domain: COLUMN names the column)"
        )

    def number(of: np.ndarray | None, n: int) -> np.ndarray:
        if of is None:
            return np.full(n, -1, np.int64)
        at = np.minimum(np.searchsorted(found, of), len(found) - 1)
        return np.where(found[at] == of, at, -1).astype(np.int64)

    return tuple(map(str, found)), number(train, len(dataset.train.y)), number(test, len(dataset.test.y))


def spread(rows: np.ndarray, clients: int) -> np.ndarray:
    """Return the domain of each client, (clients,) int64: in proportion to the domains' rows (D,), one for each domain first.

    Huntington and Hill's divisors: the next client goes where rows / sqrt(s (s + 1)) is largest, s being the clients a domain
    has; so every beginning of the list is spread in proportion too.
    """
    most = np.ceil(rows / rows.sum() * (clients + len(rows))).astype(np.int64) + 2
    d = np.repeat(np.arange(len(rows)), most)
    s = np.arange(len(d)) - np.repeat(np.cumsum(most) - most, most)
    with np.errstate(divide="ignore"):
        turn = np.lexsort((d, -rows[d], -rows[d] / np.sqrt(s * (s + 1.0))))
    return d[turn][:clients]


def counted(groups: Any, dataset: Any) -> Any:
    """Return the same groups with what the data decides: the count under kind domain, and which classes the labels of `sets` are.

    Where classes are named by whole numbers (0, 500, 90000), `sets` holds these; else it counts classes from 0.
    """
    number = {int(n): i for i, n in enumerate(dataset.label_names) if _WHOLE.fullmatch(n)}
    if groups.kind == "classes" and groups.sets is not None and len(number) == dataset.classes:
        if unknown := sorted({c for s in groups.sets for c in s} - number.keys()):
            raise ConfigError(
                f"federation.groups.sets: class {unknown[0]} found, allowed: {_listed(dataset.label_names)}"
            )
        return groups.model_copy(update={"sets": [[number[c] for c in s] for s in groups.sets]})
    if groups.kind != "domain":
        return groups
    return groups.model_copy(update={"count": len(domains(dataset, "federation.groups.kind")[0])})


def problems(groups: Any, dataset: Any, targets: Any = None) -> list[str]:
    """Return why this data cannot be grouped as asked; targets: what it has in the place of classes."""
    k, classes, shape = groups.count, dataset.classes, dataset.input_shape
    if groups.kind == "rotation" and k > 1:
        if dataset.kind != "image":
            return [f"federation.groups.kind: rotation needs images, {dataset.name} is {dataset.kind}"]
        if shape[1] != shape[2]:
            return [
                f"federation.groups.kind: rotation needs square images, those of {dataset.name} are {shape[1]}x{shape[2]}"
            ]
    if groups.kind == "label_permutation" and dataset.kind == "instruct":
        return [
            f"federation.groups.kind: label_permutation found, the labels of {dataset.name} are categories that no loss reads; "
            "allowed: none, classes, domain"
        ]
    if groups.kind == "label_permutation" and targets is not None:
        return [
            f"federation.groups.kind: label_permutation found, {dataset.name} has {targets.form}, no classes that could be permuted; "
            "allowed: none, classes (of strata), rotation, domain"
        ]
    if groups.kind == "label_permutation" and k > math.factorial(min(classes, 12)):
        return [
            f"federation.groups.count: {k} found, {classes} classes have only {math.factorial(classes)} permutations"
        ]
    if groups.kind == "classes":
        if groups.sets is None and k == classes == 2:
            return ["federation.groups.sets: missing; two groups of two classes would hold the same by default"]
        if groups.sets is None and k > classes:
            return [
                f"federation.groups.count: {k} found, allowed for {classes} classes: at most {classes}, or your own `sets`"
            ]
        wrong = sorted({c for s in groups.sets or () for c in s if not 0 <= c < classes})
        if wrong:
            return [f"federation.groups.sets: class {wrong[0]} found, allowed: 0 to {classes - 1}"]
        if any(not s or len(set(s)) < len(s) for s in groups.sets or ()):
            return [
                f"federation.groups.sets: {groups.sets} found, every set needs at least one class, and each only once"
            ]
    return []


def too_many(groups: Any, training: int) -> list[str]:
    """Return why `training` clients are too few: an unseen client's group should be one that trained."""
    if groups.kind in ("none", "domain") or groups.count <= training:
        return []
    return [f"federation.groups.count: {groups.count} found, allowed: at most {training} (the clients that train)"]


def assign(
    groups: Any, clients: int, first: int, rng: np.random.Generator, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return the group of each client, (clients,) int64; sizes differ by at most one, or follow `groups.shares`; -1 without groups.

    first: number of the first client, so that the sizes of several calls differ by at most one too; rows: the domains' rows, to
    which the sizes of groups of kind domain are in proportion.
    """
    if groups.kind == "none":
        return np.full(clients, -1, np.int64)
    if groups.kind == "domain" and rows is not None:
        return rng.permutation(spread(rows, first + clients)[first:])
    if groups.shares is not None:
        return rng.permutation(spread(np.array(groups.shares), first + clients)[first:])
    return rng.permutation(np.arange(first, first + clients) % groups.count).astype(np.int64)


def class_sets(groups: Any, classes: int) -> list[list[int]]:
    """Return the classes of each group: as given, or runs around the circle, each sharing its last class with the next group's
    first (two classes where a group has four or more of its own)."""
    if groups.sets is not None:
        return [list(s) for s in groups.sets]
    k = groups.count
    if k == 1:
        return [list(range(classes))]
    shared = 2 if classes // k >= 4 else 1
    start = [g * classes // k for g in range(k + 1)]
    return [[c % classes for c in range(start[g], min(start[g + 1] + shared, start[g] + classes))] for g in range(k)]


def holds(groups: Any, classes: int) -> np.ndarray:
    """Return (count, C) bool: whether a group has a class."""
    table = np.zeros((groups.count, classes), bool)
    for g, mine in enumerate(class_sets(groups, classes)):
        table[g, mine] = True
    return table


def rows_of(
    groups: Any,
    y: np.ndarray,
    group: np.ndarray,
    classes: int,
    rng: np.random.Generator,
    domain: np.ndarray | None = None,
) -> dict[int, np.ndarray]:
    """Return training rows that each group deals to its clients: its share of the classes it holds, or its domain; no row twice."""
    ids = [int(g) for g in np.unique(group)]
    if domain is not None:
        return {g: np.flatnonzero(domain == g) for g in ids}
    if groups.kind != "classes":
        order = rng.permutation(len(y))
        cuts = np.cumsum([np.sum(group == g) for g in ids])[:-1] * len(y) // len(group)
        return dict(zip(ids, (np.sort(p) for p in np.split(order, cuts)), strict=True))
    table = holds(groups, classes)
    got: dict[int, list[np.ndarray]] = {g: [] for g in ids}
    for c in range(classes):
        rows = rng.permutation(np.flatnonzero(y == c))
        holders = [g for g in ids if table[g, c]]
        parts = _dealt(rows, [int((group == g).sum()) for g in holders] if groups.shares else [1] * len(holders))
        for g, part in zip(holders, parts, strict=True):
            got[g].append(part)
    return {g: np.sort(np.concatenate([np.zeros(0, np.int64), *p])) for g, p in got.items()}


def _dealt(rows: np.ndarray, shares: Sequence[int]) -> list[np.ndarray]:
    """Return rows cut into parts in proportion to whole numbers; equal ones differ by at most one row, the first are the larger."""
    if len(set(shares)) <= 1:
        return np.array_split(rows, len(shares)) if shares else []
    return np.split(rows, np.cumsum(shares)[:-1] * len(rows) // sum(shares))


def permutations(groups: Any, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return (count, C): group g's new label of each class; group 0 keeps its labels, and no two groups have the same."""
    table = [tuple(range(classes))]
    while len(table) < groups.count:
        p = tuple(int(c) for c in rng.permutation(classes))
        if p not in table:  # with few classes a draw can be an old one: two equal groups could not be distinguished
            table.append(p)
    return np.array(table, np.int64)


def transform(
    groups: Any, x: np.ndarray, y: np.ndarray, row_group: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y after each row's group's transform (group g: g quarter turns, or its permutation); rows without a group
    stay as they are. `x` is written to."""
    if groups.kind == "rotation":
        for g in range(1, groups.count):
            mine = np.flatnonzero(row_group == g)
            x[mine] = np.rot90(x[mine], g, axes=(2, 3))
    elif groups.kind == "label_permutation":
        table = permutations(groups, classes, rng)
        y = np.where(row_group >= 0, table[np.maximum(row_group, 0), y], y)
    return x, y
