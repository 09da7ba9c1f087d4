"""The folder of a sweep: what was swept, and each trial's rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rayfed.errors import ConfigError
from rayfed.storage.text_files import read_json, read_yaml

ROWS = "rows.jsonl"  # of a trial, one line per evaluated round


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a trial's rows in the order in which they were written; torn lines are left out."""
    file, rows = folder / ROWS, []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


@dataclass(frozen=True)
class Trial:
    """A trial with rows by round (of a round written twice the last one); complete: whether all of its runs are done."""

    name: str
    rows: Mapping[int, Mapping[str, Any]]
    complete: bool

    @property
    def last(self) -> Mapping[str, Any]:
        """The row of the last round."""
        return self.rows[max(self.rows)]

    @property
    def point(self) -> Mapping[str, Any]:
        """The trial's newest settings; PBT changes them during the trial."""
        return self.last["point"]

    def by_seed(self, metric: str, round: int | None = None) -> dict[str, float]:
        """Return seed -> value in a round, by default the last."""
        row = self.last if round is None else self.rows.get(round, {"seeds": {}})
        return {s: v[metric] for s, v in row["seeds"].items() if v.get(metric) is not None}


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder as it is now."""

    path: Path
    about: Mapping[str, Any]  # sweep.yaml
    trials: Sequence[Trial]  # those that have rows

    @property
    def metric(self) -> str:
        """The metric that trials are judged by."""
        return self.about["options"]["metric"]

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.about["mode"] == "max" else -1

    @property
    def settings(self) -> list[str]:
        """Names of the swept settings."""
        return list(self.about["swept"])

    @cached_property
    def ranked(self) -> list[Trial]:
        """Trials, best first; those that were stopped early come after those that are complete."""

        def key(t: Trial) -> tuple[bool, float]:
            values = list(t.by_seed(self.metric).values())
            return (not t.complete, -self.sign * fmean(values) if values else math.inf)

        return sorted(self.trials, key=key)


def load_sweep(path: Path | str) -> Sweep:
    """Read a sweep's folder. ConfigError if it has no sweep.yaml."""
    path = Path(path)
    if not (path / "sweep.yaml").is_file():
        raise ConfigError(f"{path} is not a sweep's folder: it has no sweep.yaml")
    trials = []
    for folder in sorted((path / "trials").glob("*")):
        if rows := read_rows(folder):
            by_round = {row["round"]: row for row in sorted(rows, key=lambda r: r["round"])}
            runs = path / by_round[max(by_round)]["folder"]
            statuses = [read_json(runs / f"seed-{s}" / "summary.json").get("status") for s in rows[-1]["seeds"]]
            trials.append(Trial(folder.name, by_round, all(s == "done" for s in statuses)))
    return Sweep(path, read_yaml(path / "sweep.yaml"), trials)


def counts(sweep: Sweep) -> dict[str, int]:
    """Return the numbers of trials: planned, begun, complete."""
    complete = sum(t.complete for t in sweep.trials)
    return {"planned": int(sweep.about["trials"]), "begun": len(sweep.trials), "complete": complete}
