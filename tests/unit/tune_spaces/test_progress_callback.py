"""A report of a trial as a line of progress."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rayfed.launch.progress import line
from tune_spaces.sweep import progress_callback
from tune_spaces.sweep.messages import TrialReport


def test_a_report_becomes_a_line(monkeypatch: Any) -> None:
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(progress_callback, "listeners", [states.append])
    callback = progress_callback.ProgressCallback({"method.clusters": "clusters"}, 3, "accuracy/global")
    trial = SimpleNamespace(status="RUNNING", config={"point": {"method.clusters": 2}})
    others = [SimpleNamespace(status=s) for s in ("TERMINATED", "RUNNING")]
    for report in (TrialReport(2, 4, 0.5, [0.4, 0.6], False), TrialReport(4, 4, 0.25, [0.25], True)):
        callback.on_trial_result(1, [trial, *others], trial, {**report.to_tune(), "trial_id": "t", "pid": 3})
    assert [line(s) for s in states] == [
        "[1/3 done] clusters=2  round 2/4  accuracy/global 0.500 ± 0.141",
        "[2/3 done] clusters=2  round 4/4  accuracy/global 0.250",
    ]
    assert [s["status"] for s in states] == ["running", "done"]
