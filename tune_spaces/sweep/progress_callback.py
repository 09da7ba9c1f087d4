"""Progress of a sweep, in lines like those of `rayfed run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import stdev
from typing import Any

from ray import tune

from rayfed.report.point_text import point_text
from tune_spaces.sweep.domains import unpack_point
from tune_spaces.sweep.messages import TrialReport

listeners: list[Callable[[dict[str, Any]], None]] = []  # apart from the callback, which Tune saves
on_failure: list[Callable[[str, str], None]] = []  # called with a failed trial's name and its error


class ProgressCallback(tune.Callback):
    """Calls the listeners with every report, as a state that `rayfed.launch.progress` shows.

    names: short names of settings; total: planned trials; metric: NAME/SCOPE that trials are judged by.
    """

    def __init__(self, names: Mapping[str, str], total: int, metric: str):
        self.names, self.total, self.metric = dict(names), total, metric

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Take a trial's report; Tune calls this."""
        report = TrialReport.from_tune(result)
        spread = f" ± {stdev(report.values):.3f}" if len(report.values) > 1 else ""
        others = [t.status for t in trials if t is not trial]
        failed = f", {n} failed" if (n := others.count("ERROR")) else ""
        point = point_text(unpack_point(trial.config["point"]), self.names)
        state = {
            "about": f"[{others.count('TERMINATED') + report.done}/{self.total} done{failed}] {point}",
            "round": report.round,
            "rounds": report.rounds,
            "status": "done" if report.done else "running",
            "trial_id": str(trial.trial_id),
            "trials_done": others.count("TERMINATED") + report.done,
            "trials": self.total,
            "score": "diverged" if report.diverged else f"{self.metric} {report.score:.3f}{spread}",
        }
        for listener in listeners:
            listener(state)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Take a trial that is not tried again; Tune calls this."""
        for listener in on_failure:
            listener(trial.trial_id.rpartition("_")[2], str(trial.get_error() or "unknown"))
