"""Runs that fall to chance, found in their rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayfed import report
from rayfed.engine import collapse
from rayfed.engine.collapse import Chance, Collapse, find
from rayfed.storage.events import read_events
from tests import toy

TEN = Chance(0.1, 360)  # digits


def rows(*accuracies: float | None) -> list[dict[str, Any]]:
    return [{"round": r, collapse.METRIC: a} for r, a in enumerate(accuracies, 1)]


def test_chance_is_the_share_of_the_most_frequent_label() -> None:
    arrays = {"y": np.array([0, 0, 0, 1, 2, 2])}
    split: Any = SimpleNamespace(pooled_test=np.array([1, 2, 3, 4]), arrays=arrays, stages=())
    task: Any = SimpleNamespace(per_class=True)
    assert collapse.chance(task, split) == Chance(0.5, 4) and Chance(0.5, 100).spread == pytest.approx(0.05)
    assert collapse.chance(SimpleNamespace(per_class=False), split) is None  # type: ignore[arg-type]
    split.pooled_test = np.zeros(0, np.int64)
    assert collapse.chance(task, split) is None


@pytest.mark.parametrize(
    ("accuracies", "chance", "found"),
    [
        ((0.3, 0.9, 0.1), TEN, (3, 2)),
        ((0.9, 0.1, 0.9, 0.95), TEN, (2, 1)),  # a run that comes back has been there all the same
        ((0.9, None, float("nan"), 0.12), TEN, (4, 1)),
        ((0.1, 0.2, 0.12, 0.3, 0.15, 0.5, 0.7), TEN, None),  # the first rounds of a sound run
        ((0.9, 0.6, 0.8), TEN, None),
        ((0.9, 0.3), TEN, None),
        ((0.1, 0.1, 0.1), TEN, None),  # one that never learned
        ((0.97, 0.95), Chance(0.95, 1000), None),  # a rare class: never clearly above
        ((0.8, 0.5), Chance(0.5, 1000), (2, 1)),
        ((0.8, 0.5), Chance(0.5, 20), None),  # too few rows to tell
        ((0.9, 0.1), None, None),
    ],
)
def test_a_fall_to_chance(accuracies: Any, chance: Chance | None, found: tuple[int, int] | None) -> None:
    got = find(rows(*accuracies), chance)
    assert (got and (got.round, got.best_round)) == found


def test_what_is_said_of_it() -> None:
    said = Collapse(3, 0.1, 0.9, 2, 0.1).sentence()
    assert "accuracy/global was 0.900 in round 2 and 0.100 in round 3, where guessing gives 0.100" in said


def test_a_run_that_falls_apart_is_flagged_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From round 3 on the global model is made of zeros: every logit is the same."""
    from rayfed.launch import progress
    from rayfed.methods.fedavg import FedAvg
    from rayfed.storage.listing import list_runs

    plain, lost = FedAvg.round, 3

    def round(self: Any, state: Any, fed: Any, task: Any) -> Any:
        new = plain(self, state, fed, task)
        return new if fed.round < lost else {"model": {n: p * 0 for n, p in new["model"].items()}}

    monkeypatch.setattr(FedAvg, "round", round)
    changes: dict[str, Any] = {
        "rounds": 4, "federation": {"groups": {"kind": "none"}, "per_round": None}, "task": {"data": {"test": 400}},
    }  # fmt: skip
    ran = toy.run_folder("fedavg", tmp_path, **changes)
    path = ran.folder.path
    (event,) = [e for e in read_events(path) if e["kind"] == "fell apart"]
    assert event["round"] == 3 and event["best"] == ran.rows[1]["accuracy/global"] > 0.6
    summary = json.loads((path / "summary.json").read_text())
    assert summary["collapsed"]["round"] == 3 and summary["notes"][0].startswith(
        "the run fell apart: accuracy/global was"
    )
    page = report.write_report(path).read_text()
    assert "fell apart" in page and "in round 3" in page and "where guessing gives" in page
    (listed,) = list_runs(tmp_path)
    assert listed["collapsed"] == 1
    progress.print_result(path, summary)
    assert "note: the run fell apart" in " ".join(capsys.readouterr().out.split())
    again = toy.run_folder("fedavg", tmp_path, resume=True, **changes)
    assert again.ending.status == "done" and json.loads((path / "summary.json").read_text())["collapsed"]["round"] == 3
    assert len([e for e in read_events(path) if e["kind"] == "fell apart"]) == 1


def test_a_sound_run_is_not_flagged(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, rounds=4)
    assert json.loads((ran.folder.path / "summary.json").read_text())["collapsed"] is None
