"""Planted groups: clients that differ in a way that is known, so that clustering can be judged."""

from __future__ import annotations

from typing import Any

import numpy as np


def assign(groups: Any, clients: int, rng: np.random.Generator) -> np.ndarray:
    """The group of each client, (clients,) int64; sizes differ by at most one; -1 without groups."""
    if groups.kind == "none":
        return np.full(clients, -1, np.int64)
    return rng.permutation(np.arange(clients) % groups.count).astype(np.int64)


def class_sets(groups: Any, classes: int) -> list[list[int]]:
    """The classes of each group: as given, or runs of equal length around the circle that share one class or two."""
    if groups.sets is not None:
        return [list(s) for s in groups.sets]
    k = groups.count
    length = min(classes, -(-classes // k) + (2 if k > 1 else 0))
    return [[(round(g * classes / k) + j) % classes for j in range(length)] for g in range(k)]


def rows_of(
    groups: Any, y: np.ndarray, group: np.ndarray, classes: int, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Training rows that each group deals to its clients: its share of the classes it holds; no row twice."""
    ids = [int(g) for g in np.unique(group)]
    if groups.kind != "classes":
        order = rng.permutation(len(y))
        cuts = np.cumsum([np.sum(group == g) for g in ids])[:-1] * len(y) // len(group)
        return dict(zip(ids, np.split(order, cuts), strict=True))
    sets = class_sets(groups, classes)
    got: dict[int, list[np.ndarray]] = {g: [] for g in ids}
    for c in range(classes):
        rows = rng.permutation(np.flatnonzero(y == c))
        holders = [g for g in ids if c in sets[g]]
        for g, part in zip(holders, np.array_split(rows, len(holders)), strict=True) if holders else ():
            got[g].append(part)
    return {g: np.concatenate([np.zeros(0, np.int64), *p]) for g, p in got.items()}


def share(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """A group for each of n pooled test rows, in the proportion of `weights` (largest remainders), shuffled."""
    p = weights / max(weights.sum(), 1e-12)
    whole = np.floor(p * n).astype(int)
    rest = np.argsort(-(p * n - whole), kind="stable")[: n - whole.sum()]
    whole[rest] += 1
    return rng.permutation(np.repeat(np.arange(len(p)), whole))


def permutations(groups: Any, classes: int, rng: np.random.Generator) -> np.ndarray:
    """(count, C): group g's new label of each class; group 0 keeps its labels."""
    return np.stack([np.arange(classes) if g == 0 else rng.permutation(classes) for g in range(groups.count)])


def transform(
    groups: Any, x: np.ndarray, y: np.ndarray, row_group: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """x and y after each row's group's transform; rows without a group stay as they are."""
    if groups.kind == "rotation":
        x = x.copy()
        for g in range(1, groups.count):
            mine = row_group == g
            x[mine] = np.rot90(x[mine], g, axes=(2, 3))
    elif groups.kind == "label_permutation":
        table = permutations(groups, classes, rng)
        y = np.where(row_group >= 0, table[np.maximum(row_group, 0), y], y)
    return x, y
