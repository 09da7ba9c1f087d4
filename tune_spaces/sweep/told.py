"""Progress of a sweep, in lines like those of `rayfed run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import stdev
from typing import Any

from ray import tune

from rayfed.report.point_text import point_text
from tune_spaces.sweep import points

listeners: list[Callable[[dict[str, Any]], None]] = []  # apart from the callback, which Tune saves


class Told(tune.Callback):
    """Tells the listeners of every report. names: short names of settings; total: planned trials."""

    def __init__(self, names: Mapping[str, str], total: int, metric: str, rounds: int):
        self.names, self.total, self.metric, self.rounds = dict(names), total, metric, rounds

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        values = result["values"]
        spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
        over = sum(t.status in ("TERMINATED", "ERROR") for t in trials if t is not trial) + bool(result.get("done"))
        state = {
            "about": f"[{over}/{self.total} done] {point_text(points.unpacked(trial.config['point']), self.names)}",
            "round": result["round"], "rounds": result.get("of", self.rounds), "status": "done" if result.get("done") else "running",
            "score": f"{self.metric} {result['score']:.3f}{spread}",
        }  # fmt: skip
        for listener in listeners:
            listener(state)
