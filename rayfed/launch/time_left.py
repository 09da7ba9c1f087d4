"""How long all runs of a request will still take, from the live statuses of the one at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any


def time_text(seconds: float) -> str:
    """Format seconds for people: 45 -> "45 s", 300 -> "5 min", 7500 -> "2 h 05 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class TimeLeft:
    """Estimates the time left of a run, of a study or of a sweep.

    A run's own statuses say how long it will take, without its first round's one-off work (`eta_s`). In a study, runs of an arm that has
    run before are taken to last as long as that one, others as long as the mean; in a sweep the share of the trials' rounds counts that
    is done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.lasted: dict[str, float] = {}  # arm -> seconds of its last run
        self._run: Any = None  # which run of a study is at work
        self._began = 0.0
        self._trials: dict[str, float] = {}  # trial of a sweep -> share of its rounds that is done
        self._first: tuple[float, float] | None = (
            None  # when a sweep was first heard of, and the share that was done then
        )

    def of(self, state: Mapping[str, Any]) -> tuple[float, float | None]:
        """Take a live status; return the share of the work that is done, 0 to 1, and the seconds left, None while nobody can know."""
        rounds = max(1, state.get("rounds") or 1)
        share = min(1.0, state.get("round", 0) / rounds)
        if "trials" in state:
            return self._of_sweep(state, share)
        if "runs" not in state:
            return share, state.get("eta_s")
        runs, number = state["runs"], state["run_number"]
        self._note_run(state)
        left = None
        if state.get("eta_s") is not None:
            left = state["eta_s"] + sum(self._expect(arm) for arm in state.get("to_come", ()))
        return (number - 1 + share) / runs, left

    def _note_run(self, state: Mapping[str, Any]) -> None:
        """Keep the time of each arm's newest run, also of the one at work."""
        now = self.clock()
        if state["run_number"] != self._run:
            self._run, self._began = state["run_number"], now
        if state.get("eta_s") is not None:
            self.lasted[state["arm"]] = now - self._began + state["eta_s"]

    def _expect(self, arm: str) -> float:
        return self.lasted.get(arm) or fmean(self.lasted.values() or [0.0])

    def _of_sweep(self, state: Mapping[str, Any], share: float) -> tuple[float, float | None]:
        now = self.clock()
        if state.get("status") == "done":
            self._trials.pop(state["trial_id"], None)
        else:
            self._trials[state["trial_id"]] = share
        done = min(1.0, (state["trials_done"] + sum(self._trials.values())) / max(1, state["trials"]))
        if self._first is None:
            self._first = now, done
        since, before = self._first
        gained = done - before
        return done, (now - since) * (1 - done) / gained if gained > 0 else None
