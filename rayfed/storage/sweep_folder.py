"""What stands in a sweep's folder: its settings, and each trial's rows."""

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
from rayfed.storage.atomic import read_json, read_yaml

ROWS = "rows.jsonl"  # of a trial, one line per evaluated round


def read_rows(place: Path) -> list[dict[str, Any]]:
    """A trial's rows in the order in which they were written; a torn line does not count."""
    file, out = place / ROWS, []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(row, dict):
            out.append(row)
    return out


@dataclass(frozen=True)
class Trial:
    """rows: by round, the last written of each; complete: whether all of its runs are done."""

    name: str
    rows: Mapping[int, Mapping[str, Any]]
    complete: bool

    @property
    def last(self) -> Mapping[str, Any]:
        return self.rows[max(self.rows)]

    @property
    def point(self) -> Mapping[str, Any]:
        """Its newest one; PBT changes it on the way."""
        return self.last["point"]

    def by_seed(self, metric: str, round: int | None = None) -> dict[str, float]:
        """seed -> value in a round, by default the last."""
        row = self.last if round is None else self.rows.get(round, {"seeds": {}})
        return {s: v[metric] for s, v in row["seeds"].items() if v.get(metric) is not None}


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder as it is by now."""

    path: Path
    about: Mapping[str, Any]  # sweep.yaml
    trials: Sequence[Trial]

    @property
    def metric(self) -> str:
        return self.about["options"]["metric"]

    @property
    def sign(self) -> int:
        """1 where more is better."""
        return 1 if self.about["mode"] == "max" else -1

    @property
    def settings(self) -> list[str]:
        return list(self.about["swept"])

    @cached_property
    def ranked(self) -> list[Trial]:
        """Best first; trials that were stopped on the way come after those that are complete."""

        def key(t: Trial) -> tuple[bool, float]:
            values = list(t.by_seed(self.metric).values())
            return (not t.complete, -self.sign * fmean(values) if values else math.inf)

        return sorted(self.trials, key=key)


def load_sweep(path: Path | str) -> Sweep:
    """Read a sweep's folder. ConfigError if it is none."""
    path = Path(path)
    if not (path / "sweep.yaml").is_file():
        raise ConfigError(f"{path} is not a sweep's folder: it has no sweep.yaml")
    trials = []
    for place in sorted((path / "trials").glob("*")):
        found = read_rows(place)
        if found:
            by_round = {row["round"]: row for row in sorted(found, key=lambda r: r["round"])}
            here = path / by_round[max(by_round)]["folder"]
            ended = [read_json(here / f"seed-{s}" / "summary.json").get("status") for s in found[-1]["seeds"]]
            trials.append(Trial(place.name, by_round, all(s == "done" for s in ended)))
    return Sweep(path, read_yaml(path / "sweep.yaml"), trials)


def counts(sweep: Sweep) -> dict[str, int]:
    """Trials: planned, begun, complete."""
    complete = sum(t.complete for t in sweep.trials)
    return {"planned": int(sweep.about["trials"]), "begun": len(sweep.trials), "complete": complete}
