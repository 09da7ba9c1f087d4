"""How rows are scored, and what follows from the scores of several rows at once: metrics of sets, of each client and pooled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import set_metrics
from rayfed import task as tasks
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.metrics import Measure, declare
from rayfed.set_metrics import SetMetric

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree


class Scoring(NamedTuple):
    """How a task scores rows: by its measures, or by all that metrics of sets read; shapes: of one row, by name."""

    task: Task
    everything: bool
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, params: Tree, batch: Any) -> dict[str, Any]:
        """Return what is known of each row, by name (B, ...)."""
        return self.task.score(params, batch) if self.everything else self.task.metrics(params, batch)


def scoring(task: Task, data: Mapping[str, Any] | None = None) -> Scoring:
    """Return how rows are scored: by the task's measures alone, or, where `data` (arrays, of which the first row is tried) is given, by
    all that metrics of sets read."""
    if data is None:
        return Scoring(task, False, dict.fromkeys(task.row_measures, ()))
    with torch.no_grad():
        found = task.score(task.initial, task.batch({n: a[:1] for n, a in data.items()}))
    return Scoring(task, True, {n: tuple(x.shape[1:]) for n, x in found.items()})


# -- metrics of sets ---------------------------------------------------------------------------------------------------


def asked(config: Config, federation: Federation) -> tuple[list[SetMetric], list[str]]:
    """Return the metrics of `evaluate.metrics`, or those that are usual for the task's kind, and what is wrong with them."""
    cls = tasks.of(federation.task)
    names, found, problems = config.evaluate.metrics, [], []
    for name in cls.usual if names is None else dict.fromkeys(names):
        try:
            found.append(set_metrics.make(name, cls.predicts, federation.outputs, federation.new_classes))
        except ConfigError as e:
            problems += e.problems
    own = [m.name for m in measures(config, federation, [])]
    for m in [m for metric in found for m in metric.measures]:
        if m.name in own:
            problems.append(f"evaluate.metrics: {m.name!r} is measured already; allowed: another name")
        own.append(m.name)
    return found, problems


def measures(config: Config, federation: Federation, metrics: list[SetMetric]) -> list[Measure]:
    """Return all that is measured: by the task's kind under its settings, and by these metrics of sets."""
    cls = tasks.of(federation.task)
    own = cls.measured(cls.Settings(**config.task.kind.options))
    return [*own, *(m for metric in metrics for m in metric.measures)]


@dataclass(eq=False)
class ClientRows:
    """What is known of each scored row of a client: rows (n,) of the data arrays, scores by name (n, ...); values: its metrics of sets,
    once they were worked out."""

    rows: np.ndarray
    scores: Mapping[str, np.ndarray]
    values: dict[str, float | None] | None = None


class Columns(Mapping[str, Any]):
    """The data arrays' rows by name, cut out when one is read."""

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: np.ndarray):
        self._arrays, self._rows = arrays, rows

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._arrays[name])[self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class SetScores:
    """Works out a run's metrics of sets: of each client's rows, and of all rows of a scope together.

    names: of the metrics; shapes: of what is known of a row; measures: see `measures`.
    """

    def __init__(self, metrics: list[SetMetric], federation: Federation, task: Task):
        self.metrics, self.arrays = metrics, federation.arrays
        self.measures = tuple(m for metric in metrics for m in metric.measures)
        self.names = tuple(m.name for m in self.measures)
        self.shapes = scoring(task.of_family(0), federation.arrays).shapes

    @classmethod
    def of(cls, config: Config, federation: Federation, task: Task) -> SetScores | None:
        """Return what works out the metrics of sets of a run; None where it has none. ConfigError for a metric that cannot be had."""
        found, problems = asked(config, federation)
        if problems:
            raise ConfigError(problems)
        own = tuple(m for m in task.measures if m.of == "set")
        summary = set_metrics.contained_in(f"task.kind: {federation.task}.summary", task.summary)
        found = [*([SetMetric(own, summary)] if own else []), *found]
        declare([*task.measures, *(m for metric in found for m in metric.measures)])
        return cls(found, federation, task) if found else None

    def scope(
        self, name: str, rows: Mapping[int, ClientRows]
    ) -> tuple[dict[str, float | None], list[tuple[list[str], str]]]:
        """Return a scope's metrics, and (metrics, why) of those that are undefined for some clients.

        `NAME/SCOPE` is the mean over the clients for which it is defined, `NAME/SCOPE_ex` that of all their rows together; of `global`,
        which has one model, there is one number. rows: of each client, or the pool's under any number.
        """
        found = {c: rows[c] for c in sorted(rows) if len(rows[c].rows)}
        if not found:
            return {}, []
        each = {c: self._of(r) for c, r in found.items()}
        out: dict[str, float | None] = {}
        undefined: dict[str, list[str]] = {}
        pooled = {} if name == "global" else self._of(_joined(list(found.values())))
        for n in self.names:
            values = [v for row in each.values() if (v := row[n]) is not None]
            out[f"{n}/{name}"] = math.fsum(values) / len(values) if values else None
            if pooled:
                out[f"{n}/{name}_ex"] = pooled[n]
            if len(values) < len(each):
                undefined.setdefault(self._why(name, each, n), []).append(f"{n}/{name}")
        return out, [(metrics, f"{', '.join(metrics)}: {why}") for why, metrics in undefined.items()]

    def of_client(self, rows: ClientRows | None) -> dict[str, float | None]:
        """Return the metrics of one client's rows, None where they are undefined or it has none."""
        return self._of(rows) if rows is not None and len(rows.rows) else dict.fromkeys(self.names)

    def _of(self, rows: ClientRows) -> dict[str, float | None]:
        if rows.values is None:
            scores = {n: np.asarray(x, np.float64) for n, x in rows.scores.items()}
            rows.values = set_metrics.computed(self.metrics, scores, Columns(self.arrays, rows.rows))
        return rows.values

    @staticmethod
    def _why(scope: str, each: Mapping[int, Mapping[str, float | None]], name: str) -> str:
        """Return where a metric is undefined, in words."""
        missing = [c for c, row in each.items() if row[name] is None]
        if scope == "global":
            return "undefined on the pooled test set"
        if len(missing) == len(each):
            return "undefined for every client"
        return f"mean without {len(missing)} of {len(each)} clients, for which it is undefined (first: client {missing[0]})"


def _joined(parts: list[ClientRows]) -> ClientRows:
    """Return the rows of several clients one after another."""
    scores = {n: np.concatenate([p.scores[n] for p in parts]) for n in parts[0].scores}
    return ClientRows(np.concatenate([p.rows for p in parts]), scores)
