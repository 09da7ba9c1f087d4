"""Runs that fall apart: accuracy at chance after it was clearly above it. From there on the last bits of a sum decide how they end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rayfed.partition import Federation
    from rayfed.task import Task

METRIC = "accuracy/global"
ABOVE = 0.3  # of the way from chance to 1 that accuracy has to have gone to be clearly above chance
LOST = 0.1  # of what it had gained that is left where it is at chance again
SPREAD = 3.0  # standard deviations of guessing within which accuracy is that of guessing; three times as many are clearly more


@dataclass(frozen=True)
class Chance:
    """What guessing gets right of the pooled test set. share: of the most frequent label; rows: of the set."""

    share: float
    rows: int

    @property
    def spread(self) -> float:
        """The standard deviation of the accuracy of guessing."""
        return math.sqrt(self.share * (1 - self.share) / self.rows)


@dataclass(frozen=True)
class Collapse:
    """The first fall of a run to chance: in which round, to what, from the best accuracy before it."""

    round: int
    value: float
    best: float
    best_round: int
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for events and the summary."""
        return asdict(self)

    def sentence(self) -> str:
        """Return what a reader of the run's results should know."""
        return (
            f"the run fell apart: {METRIC} was {self.best:.3f} in round {self.best_round} and {self.value:.3f} in round "
            f"{self.round}, where guessing gives {self.chance:.3f}. From there on the last bits of sums decide, and another executor "
            "or machine may end elsewhere; a smaller local.optimizer.lr trains stably"
        )


def chance(task: Task, federation: Federation) -> Chance | None:
    """Return what guessing gets right; None where the task has no classes or the federation no pooled test set, or another one with each
    task of a stream."""
    rows = federation.pooled_test
    if federation.stages or not (task.per_class and len(rows)):
        return None
    counts = np.bincount(np.asarray(federation.arrays["y"])[rows].astype(np.int64))
    return Chance(float(counts.max() / len(rows)), len(rows))


def find(rows: Sequence[Mapping[str, Any]], chance: Chance | None) -> Collapse | None:
    """Return the first fall to chance in a run's rows, in order; None without one.

    At chance: no more than LOST of the way from chance to the best accuracy before it, or within SPREAD deviations of guessing.
    Clearly above: at least ABOVE of the way from chance to 1, and three times SPREAD deviations.
    """
    if chance is None:
        return None
    above = max(ABOVE * (1 - chance.share), 3 * SPREAD * chance.spread)
    best, best_round = -math.inf, 0
    for row in rows:
        value = row.get(METRIC)
        if value is None or math.isnan(value):
            continue
        gained = best - chance.share
        if gained >= above and value - chance.share <= max(LOST * gained, SPREAD * chance.spread):
            return Collapse(int(row["round"]), float(value), float(best), best_round, chance.share)
        if value > best:
            best, best_round = value, int(row["round"])
    return None
