"""The models of the best round so far: `best/round-000007/` of a run folder, under `storage.best`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayfed.metrics import lower_is_better
from rayfed.storage.atomic import remove

FOLDER = "best"
NAME = re.compile(r"round-(\d{6})")


def improves(value: float, best: float | None, metric: str, least: float = 0.0) -> bool:
    """Return whether a value is better than the best so far (None: there is none) by more than `least`; NaN never is."""
    if math.isnan(value) or best is None:
        return not math.isnan(value)
    return best - value > least if lower_is_better(metric) else value - best > least


def is_over(values: Sequence[float], metric: str, patience: int, least: float) -> bool:
    """Return whether the last `patience` values of a metric, in the order of rounds, have improved on what was before them by no more
    than `least`."""
    best: float | None = None
    since = 0
    for value in values:
        if improves(value, best, metric, least):
            best, since = value, 0
        else:
            since += 1
    return since >= patience


def kept(folder: Path) -> dict[int, Path]:
    """Return round -> folder of the best models that a run folder holds, in order."""
    found = {p: NAME.fullmatch(p.name) for p in (folder / FOLDER).glob("*")}
    return dict(sorted((int(m[1]), p) for p, m in found.items() if m))


class BestModels:
    """Keeps the models of the best round. They are written before that round is committed; a run that goes back to a snapshot before
    it computes the round, and writes them, again."""

    def __init__(self, folder: Path, metric: str, rows: Sequence[Mapping[str, Any]]):
        """folder: of the run; rows: up to the round from which it goes on; what was written after them is deleted."""
        self.folder, self.metric = folder, metric
        self.value: float | None = None
        for row in rows:
            self._see(row)
        for r, path in kept(folder).items():
            if r > len(rows):
                remove(path)

    def take(self, r: int, row: Mapping[str, Any], save: Callable[[Path], None]) -> None:
        """Take a round's row before it is committed: save the models where it is the best one."""
        if self._see(row):
            (self.folder / FOLDER).mkdir(exist_ok=True)
            save(self.folder / FOLDER / f"round-{r:06d}")

    def committed(self) -> None:
        """Delete the models of rounds that are not the best any more."""
        for path in list(kept(self.folder).values())[:-1]:
            remove(path)

    def _see(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row has the best value so far."""
        value = row.get(self.metric)
        if value is None or not improves(value, self.value, self.metric):
            return False
        self.value = value
        return True
