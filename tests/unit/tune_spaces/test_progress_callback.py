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
    trial = SimpleNamespace(status="RUNNING", trial_id="ab12_00001", config={"point": {"method.clusters": 2}})
    others = [SimpleNamespace(status=s) for s in ("TERMINATED", "RUNNING", "ERROR")]
    reports = [TrialReport(2, 4, 0.5, [0.4, 0.6], False), TrialReport(4, 4, 0.25, [0.25], True)]
    for report in (*reports, TrialReport(3, 4, -1e30, [], True, diverged=True)):
        callback.on_trial_result(1, [trial, *others], trial, {**report.to_tune(), "trial_id": "t", "pid": 3})
    assert [line(s) for s in states] == [
        "[1/3 done, 1 failed] clusters=2  round 2/4  accuracy/global 0.500 ± 0.141",
        "[2/3 done, 1 failed] clusters=2  round 4/4  accuracy/global 0.250",
        "[2/3 done, 1 failed] clusters=2  round 3/4  diverged",
    ]
    assert [s["status"] for s in states] == ["running", "done", "done"]


def test_a_trial_that_is_not_tried_again_is_passed_on(monkeypatch: Any) -> None:
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(progress_callback, "on_failure", [lambda *about: found.append(about)])
    trial = SimpleNamespace(trial_id="ab12_00003", get_error=lambda: ValueError("no disk"))
    progress_callback.ProgressCallback({}, 3, "accuracy/global").on_trial_error(1, [trial], trial)
    assert found == [("00003", "no disk")]
