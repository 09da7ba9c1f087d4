"""The folder of a sweep: what was swept, and each trial's rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from rayfed.errors import ConfigError
from rayfed.storage.text_files import read_json, read_yaml, unseal

ROWS = "rows.jsonl"  # of a trial, one line per evaluated round
POINT = "point.json"  # of a trial, and of each of its clones: its settings
OUTCOME = "outcome.json"  # of a trial that has diverged or failed


@dataclass(frozen=True)
class Outcome:
    """How a trial ended that is not complete.

    reason: its error's first line; seed: of the run that it comes from, None where it comes from no run; diverged: the round in
    which training left the finite numbers, None where something failed; certain: whether it would fail again; session: of the
    driver under which it failed.
    """

    reason: str
    seed: int | None = None
    diverged: int | None = None
    certain: bool = True
    session: str = ""

    @classmethod
    def read(cls, trial: Path) -> Outcome | None:
        """Read it from a trial's folder; None where there is none."""
        found = read_json(trial / OUTCOME)
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in found.items() if k in known}) if "reason" in found else None

    def __str__(self) -> str:
        return f"failed: {self.reason}" if self.diverged is None else f"diverged in round {self.diverged}"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a trial's rows in the order in which they were written; torn and damaged lines are left out."""
    file, rows = folder / ROWS, []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(unseal(line))
    return rows


@dataclass(frozen=True)
class Trial:
    """A trial with rows by round (of a round written twice the last one).

    complete: whether all of its runs are done; begun: its folder and settings before there are rows; outcome: where it has diverged
    or failed.
    """

    name: str
    rows: Mapping[int, Mapping[str, Any]]
    complete: bool
    begun: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None

    @property
    def round(self) -> int:
        """The last round that has a row, 0 before there is one."""
        return max(self.rows, default=0)

    @property
    def last(self) -> Mapping[str, Any]:
        """The row of the last round; without one, a row without seeds."""
        return self.rows[self.round] if self.rows else {"round": 0, "seeds": {}, **self.begun}

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
    trials: Sequence[Trial]  # those that have rows, have diverged or have failed

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
        """Trials that have results and have neither diverged nor failed, best first; those that were stopped early come last."""

        def key(t: Trial) -> tuple[bool, float]:
            values = list(t.by_seed(self.metric).values())
            return (not t.complete, -self.sign * fmean(values) if values else math.inf)

        return sorted((t for t in self.trials if t.rows and not t.outcome), key=key)

    @cached_property
    def unsound(self) -> list[Trial]:
        """Trials that have diverged, then those that have failed."""
        found = [t for t in self.trials if t.outcome]
        return sorted(found, key=lambda t: t.outcome is None or t.outcome.diverged is None)


def load_sweep(path: Path | str) -> Sweep:
    """Read a sweep's folder. ConfigError if it has no sweep.yaml."""
    path = Path(path)
    if not (path / "sweep.yaml").is_file():
        raise ConfigError(f"{path} is not a sweep's folder: it has no sweep.yaml")
    about, trials = read_yaml(path / "sweep.yaml"), []
    seeds = about["options"]["seeds"]
    for folder in sorted((path / "trials").glob("*")):
        rows, outcome = read_rows(folder), Outcome.read(folder)
        if not rows and not outcome:
            continue
        by_round = {row["round"]: row for row in sorted(rows, key=lambda r: r["round"])}
        runs = path / by_round[max(by_round)]["folder"] if rows else folder
        statuses = [read_json(runs / f"seed-{s}" / "summary.json").get("status") for s in seeds]
        complete = not outcome and all(s == "done" for s in statuses)
        begun = {"folder": str(folder.relative_to(path)), "point": read_json(folder / POINT).get("point") or {}}
        trials.append(Trial(folder.name, by_round, complete, begun, outcome))
    return Sweep(path, about, trials)


def counts(sweep: Sweep) -> dict[str, int]:
    """Return the numbers of trials: planned, begun, complete, diverged, failed."""
    ends = [t.outcome for t in sweep.trials if t.outcome]
    diverged = sum(o.diverged is not None for o in ends)
    return {
        "planned": int(sweep.about["trials"]),
        "begun": len(sweep.trials),
        "complete": sum(t.complete for t in sweep.trials),
        "diverged": diverged,
        "failed": len(ends) - diverged,
    }
