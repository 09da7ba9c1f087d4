"""What a report is made from: the runs of a folder, by arm and seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rayfed import rows
from rayfed.files import read_yaml
from rayfed.metrics import SCOPES
from rayfed.runs import method_name, read_json, status, study_base, study_runs


@dataclass(frozen=True)
class Run:
    """One run as read from its folder."""

    path: Path
    arm: str
    seed: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any]  # {} while it has not ended
    status: str
    rows: Sequence[Mapping[str, Any]]

    def series(self, metric: str) -> list[tuple[int, float]]:
        """(round, value) where measured."""
        return [(r["round"], float(r[metric])) for r in self.rows if r.get(metric) is not None]

    def final(self, metric: str) -> float | None:
        """The last measured value."""
        found = self.series(metric)
        return found[-1][1] if found else None

    @cached_property
    def clients(self) -> list[dict[str, Any]]:
        """Client rows of the newest evaluated round."""
        return rows.read_clients(self.path)


@dataclass(frozen=True)
class Subject:
    """A run (one arm, one seed) or a study."""

    path: Path
    name: str
    study: Mapping[str, Any] | None
    arms: Mapping[str, Sequence[Run]]  # in the study's order; runs that have begun
    planned: int

    @property
    def all(self) -> list[Run]:
        return [run for found in self.arms.values() for run in found]

    @property
    def ended(self) -> dict[str, list[Run]]:
        """Only runs that are done: finals of others are finals of nothing."""
        return {arm: [r for r in found if r.summary.get("status") == "done"] for arm, found in self.arms.items()}

    @cached_property
    def metrics(self) -> list[str]:
        """All metric names: scopes first, in the order of the scopes."""
        names = dict.fromkeys(k for run in self.all for row in run.rows for k in row if k != "round")
        used = [n for n in names if any(run.series(n) for run in self.all)]
        order = list(SCOPES)

        def rank(name: str) -> tuple[int, int, int]:
            kind, _, where = name.partition("/")
            base = where.removesuffix("_ex")
            if base not in SCOPES:
                return (2, 0, 0)
            return (
                {"accuracy": 0, "loss": 1}.get(kind, 2) if kind in ("accuracy", "loss") else 1,
                where != base,
                order.index(base),
            )

        return sorted(used, key=rank)

    def scoped(self) -> dict[str, list[str]]:
        """NAME -> its scopes without `_ex`."""
        out: dict[str, list[str]] = {}
        for metric in self.metrics:
            name, _, where = metric.partition("/")
            if where in SCOPES:
                out.setdefault(name, []).append(where)
        return out


def load_run(path: Path, arm: str | None = None, seed: int | None = None) -> Subject:
    """One run folder."""
    run = read_run(path, arm, seed)
    return Subject(path, path.name, None, {run.arm: [run]}, 1)


def read_run(path: Path, arm: str | None = None, seed: int | None = None) -> Run:
    """Config, rows, summary and status of a run folder."""
    config = read_yaml(path / "config.yaml")
    return Run(
        path,
        arm or method_name(config),
        int(config.get("seed", 0)) if seed is None else seed,
        config,
        read_json(path / "summary.json"),
        status(path),
        list(rows.read(path).values()),
    )


def load_study(path: Path) -> Subject:
    """A study folder with the runs that have begun."""
    study = read_yaml(path / "study.yaml")
    planned = list(study_runs(path, study))
    arms: dict[str, list[Run]] = {arm: [] for arm, _, _ in planned}
    for arm, seed, where in planned:
        if (where / "config.yaml").is_file():
            arms[arm].append(read_run(where, arm, seed))
    return Subject(path, str(study_base(study).get("name") or path.name), study, arms, len(planned))


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None where undefined."""
    if not values:
        return None, None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
