"""Streams of tasks (`federation.stream`): what clients hold changes at borders between rounds.

The rows of all tasks are there from the start; which of them are a client's follows from the number of the round alone, so that any
number of actors, a resume and a lost call see the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import keys
from rayfed.errors import ConfigError
from rayfed.partition import groups as planted

if TYPE_CHECKING:
    from rayfed.partition import Draw, Federation, Index


class Stage(NamedTuple):
    """Who holds what while one task is learned; fields as in `Federation`."""

    train: Index
    val: Index
    test: Index
    pooled_test: np.ndarray
    group: np.ndarray
    class_counts: np.ndarray
    backdoor: Index | None

    def numpy(self) -> dict[str, np.ndarray]:
        """Return its arrays by name, of an index as `train/offsets` and `train/rows`."""
        flat: dict[str, np.ndarray] = {}
        for name, value in self._asdict().items():
            if name in ("train", "val", "test", "backdoor"):
                flat |= {f"{name}/{n}": a for n, a in vars(value).items()} if value is not None else {}
            else:
                flat[name] = value
        return flat

    @classmethod
    def from_numpy(cls, flat: Mapping[str, Any], where: str, index: type[Index]) -> Stage:
        """Return what `numpy` gave, under names that begin with `where`."""
        made: dict[str, Any] = {
            n: index(flat[f"{where}{n}/offsets"], flat[f"{where}{n}/rows"])
            if f"{where}{n}/rows" in flat
            else flat.get(where + n)
            for n in cls._fields
        }
        return cls(**made)


def staged(whole: Federation, settings: Any, draw: Draw, name: str) -> Federation:
    """Return a federation with the stages of a stream, whose own splits are those of the first one; name: of the data set.

    permuted  task k's inputs are the same rows through a fixed permutation of their places (pixels, in all channels alike; columns);
              the first task's is the identity (Goodfellow et al. 2013, 1312.6211)
    classes   the classes in runs of (nearly) equal number, task k having the rows of the k-th (Zenke et al. 2017, 1703.04200)
    drift     task k's labels go through a permutation of the classes, the first task's being the identity: p(y | x) changes. At each
              border a share of the clients goes on to its next concept, and concepts are the clients' groups (Jothimurugesan et al.
              2023, 2206.00799, who exchange two classes)

    ConfigError where the data cannot be had as such a stream.
    """
    if found := problems(whole, settings, name):
        raise ConfigError(found)
    made = {"permuted": _permuted, "classes": _of_classes, "drift": _drifting}[settings.kind](whole, settings, draw)
    for k, stage in enumerate(made.stages, 1):
        if not stage.train.offsets[whole.population]:
            raise ConfigError(f"federation.stream.tasks: {settings.tasks} found, nobody has a training row of task {k}")
    note = f"a stream of {settings.tasks} tasks ({settings.kind}), the next one after every {settings.every} rounds"
    return replace(made, every=settings.every, notes=(*made.notes, note), **made.stages[0]._asdict())


def problems(whole: Federation, settings: Any, name: str) -> list[str]:
    """Return why this data cannot be a stream of a kind."""
    where, kind, tasks = "federation.stream", settings.kind, settings.tasks
    if whole.columns:
        return [f"{where}.kind: {kind} found, {name} has more than x and y ({', '.join(whole.columns)}); allowed: none"]
    if kind == "permuted":
        if whole.kind not in ("image", "tabular"):
            return [f"{where}.kind: permuted found, {name} is {whole.kind}; allowed: none, classes, drift"]
        return []
    if whole.form != "classes":
        return [f"{where}.kind: {kind} found, {name} has {whole.form}, no classes; allowed: none, permuted"]
    if kind == "classes":
        most, what = whole.classes, f"the {whole.classes} classes"
    else:
        most, what = math.factorial(min(whole.classes, 12)), f"the permutations of {whole.classes} classes"
        if (whole.group >= 0).any():
            return [
                f"{where}.kind: drift found beside planted groups, and its concepts are the groups; allowed: groups none"
            ]
        if whole.backdoor is not None:
            return [
                f"{where}.kind: drift found beside attacks of kind trigger, whose class it would move; allowed: permuted, classes"
            ]
    return [f"{where}.tasks: {tasks} found, allowed: at most {most} ({what})"] if tasks > most else []


def _permuted(whole: Federation, settings: Any, draw: Draw) -> Federation:
    x, rng = whole.arrays["x"], draw("permutations of inputs")
    flat = x.reshape(*x.shape[: 2 if whole.kind == "image" else 1], -1)
    others = [flat[..., rng.permutation(flat.shape[-1])].reshape(x.shape) for _ in range(1, settings.tasks)]
    arrays = {"x": np.concatenate([x, *others]), "y": np.tile(whole.arrays["y"], settings.tasks)}

    def of(k: int) -> Stage:
        at = np.full(whole.clients, k)
        return _copies(whole, at, np.full(len(whole.pooled_test), k), len(x))

    return replace(whole, arrays=arrays, stages=tuple(of(k) for k in range(settings.tasks)))


def _of_classes(whole: Federation, settings: Any, draw: Draw) -> Federation:
    y = whole.arrays["y"]

    def of(mine: np.ndarray) -> Stage:
        pooled = whole.pooled_test[np.isin(y[whole.pooled_test], mine)]
        counts = np.where(np.isin(np.arange(whole.classes), mine), whole.class_counts, 0)
        train, val, test = (
            _where(index, np.isin(y[index.rows], mine)) for index in (whole.train, whole.val, whole.test)
        )
        return Stage(train, val, test, pooled, whole.group, counts, whole.backdoor)

    sets = np.array_split(np.arange(whole.classes), settings.tasks)
    return replace(whole, stages=tuple(of(mine) for mine in sets))


def _drifting(whole: Federation, settings: Any, draw: Draw) -> Federation:
    x, y, n = whole.arrays["x"], whole.arrays["y"], whole.clients
    table = planted.permutations(SimpleNamespace(count=settings.tasks), whole.classes, draw("permutations of labels"))
    labels = [np.where(y >= 0, labels_of[np.maximum(y, 0)], y) for labels_of in table]  # -1: unknown, of public rows
    arrays = {"x": np.concatenate([x] * settings.tasks), "y": np.concatenate(labels).astype(y.dtype)}
    concept, stages, moves = np.zeros(n, np.int64), [], draw("clients that drift")
    for k in range(settings.tasks):
        if k:
            concept = concept.copy()
            concept[moves.permutation(n)[: max(1, round(settings.share * n))]] += 1
        weights = np.bincount(concept[: whole.population], whole.train.sizes()[: whole.population], settings.tasks)
        pooled = keys.proportional(weights, len(whole.pooled_test), draw(f"concepts of the pooled test set {k}"))
        counts = np.zeros_like(whole.class_counts)
        counts[np.arange(n)[:, None], table[concept]] = whole.class_counts
        made = _copies(whole, concept, pooled, len(x))
        stages.append(made._replace(group=concept, class_counts=counts))
    return replace(whole, arrays=arrays, stages=tuple(stages))


def _copies(whole: Federation, copy: np.ndarray, pooled: np.ndarray, n: int) -> Stage:
    """Return the stage in which each client has its rows in copy number `copy` (N,) of the data, and each pooled row in that of `pooled`;
    n: rows of one copy."""

    def moved(index: Index) -> Index:
        return replace(index, rows=index.rows + n * copy[index.owners()])

    backdoor = None if whole.backdoor is None else moved(whole.backdoor)
    train, val, test = (moved(index) for index in (whole.train, whole.val, whole.test))
    return Stage(train, val, test, whole.pooled_test + n * pooled, whole.group, whole.class_counts, backdoor)


def _where(index: Index, there: np.ndarray) -> Index:
    """Return the index with those of its rows that are there."""
    kept = np.bincount(index.owners()[there], minlength=len(index))
    return replace(index, offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64), rows=index.rows[there])
