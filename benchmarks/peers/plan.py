"""A plan, read, and the times of its rounds: what every side needs, in NumPy alone.

A plan (made by run.py from rayfed's own config) is a folder: `plan.npz` with the examples and, for every round, its clients and the rows
of each of their batches; `start.npz` with the first weights; `test.npy` with the rows of the pooled test set; `plan.json` with names
and sizes. Every engine replays the same plan.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCALE = 1e-4  # of a visit without training: weights times (1 + SCALE x the client's number)
EVERY = 5  # rounds between two evaluations: rayfed's default


class Plan:
    """A plan folder, read. engine: the side that replays it; a slow one has fewer rounds."""

    def __init__(self, where: str | Path, engine: str = ""):
        where = Path(where)
        self.about: dict[str, Any] = json.loads((where / "plan.json").read_text(encoding="utf-8"))
        with np.load(where / "plan.npz") as z:
            self.x, self.y = z["x"], z["y"].astype(np.int64)
            self.clients, self.rows, self.examples = (
                z["clients"],
                z["rows"],
                z["examples"],
            )  # (R, m), (R, m, T, B), (R, m)
        with np.load(where / "start.npz") as z:
            self.names = list(z.files)
            self.start = [z[n] for n in self.names]
        self.test = np.load(where / "test.npy")
        self.fewer: dict[str, int] = self.about.get("fewer", {})  # engine -> rounds
        self.rounds: int = self.fewer.get(engine, len(self.clients))

    def evaluated(self, round: int) -> bool:
        """Say whether the global model is scored after a round, counted from 1: as by rayfed's defaults."""
        return round % EVERY == 0 or round == self.rounds


class Times:
    """When rounds began and ended, and how good the global model was, written at the end."""

    def __init__(self, where: str | Path):
        self.where = Path(where)
        self.rounds: list[list[float]] = []
        self.accuracy: list[float] = []
        self.evaluations: list[float] = []

    def begin(self) -> None:
        self.rounds.append([time.time(), 0.0])

    def end(self) -> None:
        self.rounds[-1][1] = time.time()

    def score(self, plan: Plan, accuracy: Callable[..., Any], *weights: Any) -> None:
        """Score the global model by `accuracy(*weights)`, where rayfed's defaults do."""
        if plan.evaluated(len(self.rounds)):
            began = time.time()
            self.accuracy.append(float(accuracy(*weights)))
            self.evaluations.append(time.time() - began)

    def write(self, plan: Plan, weights: list[np.ndarray]) -> None:
        """Write the times and the last weights, right after the last round and its evaluation."""
        found = {
            "rounds": self.rounds,
            "finished": time.time(),
            "accuracy": self.accuracy,
            "evaluations": self.evaluations,
        }
        keep(self.where / "end.npz", plan, weights)
        (self.where / "times.json").write_text(json.dumps(found), encoding="utf-8")


def keep(file: Path, plan: Plan, weights: list[np.ndarray]) -> None:
    """Write weights by their names."""
    np.savez(file, **dict(zip(plan.names, weights, strict=True)))
