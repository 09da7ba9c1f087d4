"""What a sweep's processes send each other: the driver to its trials, a trial to Tune and to its later self."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from actors.placement import Plan
from tune_spaces.sweep.domains import Point


@dataclass(frozen=True)
class TrialRequest:
    """What all trials of a sweep share.

    home: the sweep's folder; base: the config that points change, as plain values; fixed: settings that all points share; seeds:
    of every point; metric, mode: NAME/SCOPE that trials are judged by, and whether max or min is best; plan: placement of a trial;
    keep_snapshots: all of them, since PBT may clone any; environment: the driver's variables for sinks; code: the user's own
    files by their names in the config; session: of this start of the driver.
    """

    home: str
    base: dict[str, Any]
    fixed: dict[str, Any]
    seeds: tuple[int, ...]
    metric: str
    mode: str
    plan: Plan
    keep_snapshots: bool
    environment: dict[str, str]
    code: dict[str, bytes]
    session: str


@dataclass(frozen=True)
class TrialReport:
    """What a trial reports to Tune after a round: the metric's mean over the seeds as `score`, and its values; rounds: of how
    many; done: nothing more comes; diverged: whether that is because training left the finite numbers. Tune reads `round`,
    `score` and `done` by these names."""

    round: int
    rounds: int
    score: float
    values: list[float]
    done: bool
    diverged: bool = False

    def to_tune(self) -> dict[str, Any]:
        """Write it as Tune takes it."""
        return asdict(self)

    @classmethod
    def from_tune(cls, result: Mapping[str, Any]) -> TrialReport:
        """Read it among the values that Tune adds."""
        return cls(**{k: result[k] for k in cls.__dataclass_fields__})


@dataclass(frozen=True)
class TrialPointer:
    """Runs at a round, each with a snapshot there: Tune's checkpoint of a trial. folder: inside the sweep's."""

    folder: str
    round: int


@dataclass(frozen=True)
class TrialRow:
    """A line of rows.jsonl: a trial's evaluated round. folder: of its runs, inside the sweep's; seeds: seed -> metrics."""

    trial: str
    round: int
    folder: str
    point: Point
    seeds: dict[str, dict[str, Any]]

    def metrics(self) -> list[str]:
        """Return the names that every seed has."""
        first, *others = self.seeds.values()
        return [m for m in first if all(m in o for o in others)]

    def values(self, metric: str) -> list[float]:
        """Return a metric's value of each seed."""
        return [float(s[metric]) for s in self.seeds.values()]
