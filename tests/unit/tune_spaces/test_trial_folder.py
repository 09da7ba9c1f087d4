"""Where a trial's runs are, what they are a clone of, and rows that are neither lost nor doubled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import RunFailed
from rayfed.storage.sweep_folder import Outcome
from tune_spaces.sweep import trial_folder
from tune_spaces.sweep.messages import TrialPointer, TrialRow
from tune_spaces.sweep.trial_folder import TrialFolder

POINT, OTHER = {"local.optimizer.lr": 0.1}, {"local.optimizer.lr": 0.2}


def opened(home: Path, name: str, point: dict[str, Any], pointer: TrialPointer | None = None) -> TrialFolder:
    folder = TrialFolder(home, name)
    folder.find_runs(point, pointer)
    return folder


def test_runs_are_found_again_and_clones_have_folders_of_their_own(tmp_path: Path) -> None:
    first = opened(tmp_path, "00000", POINT)
    assert (first.relative, first.origin) == ("trials/00000", None)
    first.write_record(POINT)
    with pytest.raises(RunFailed, match="holds another point"):
        opened(tmp_path, "00000", OTHER)
    again = opened(tmp_path, "00000", OTHER, TrialPointer("trials/00000", 3))
    assert (again.relative, again.origin) == ("trials/00000", None), "its own pointer leads to its own runs"
    origin = TrialPointer("trials/00001", 4)
    clone = opened(tmp_path, "00000", OTHER, origin)
    assert (clone.relative, clone.origin) == ("trials/00000/clone-1", origin)
    assert clone.origin_run(7) == tmp_path / "trials" / "00001" / "seed-7"
    clone.write_record(OTHER)
    assert opened(tmp_path, "00000", OTHER, origin).relative == "trials/00000/clone-1", "the same clone once more"
    assert opened(tmp_path, "00000", POINT, origin).relative == "trials/00000/clone-2"
    later = opened(tmp_path, "00000", OTHER, TrialPointer("trials/00000/clone-1", 6))
    assert (later.relative, later.origin) == ("trials/00000/clone-1", origin)


def test_rows_that_were_not_written_are_made_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 1 stopped early, after round 4; round 3 was not evaluated."""

    def metrics(where: Path) -> dict[int, dict[str, Any]]:
        last = 4 if where.name == "seed-1" else 6
        return {r: {"round": r, "accuracy/global": None if r == 3 else r / 10} for r in range(1, last + 1)}

    monkeypatch.setattr(trial_folder.round_log, "read", metrics)
    folder = opened(tmp_path, "00000", POINT)
    folder.write_rows([folder.make_row(2, POINT, (0, 1))])
    for _ in range(2):
        folder.write_missing_rows(5, POINT, (0, 1), "accuracy/global")
        assert [row.round for row in folder.rows()] == [1, 2, 4, 5]
    assert folder.rows()[-1].values("accuracy/global") == [0.5, 0.4]
    assert folder.rows()[-1].metrics() == ["accuracy/global"]
    lines = (folder.place / "rows.jsonl").read_bytes().splitlines()
    assert len([line for line in lines if line]) == 4
    clone = opened(tmp_path, "00000", OTHER, TrialPointer("trials/00001", 4))
    clone.write_missing_rows(6, OTHER, (0,), "accuracy/global")
    assert [row.round for row in clone.rows()] == [5, 6], "rows up to there are the other trial's"


def test_the_last_row_of_a_round_counts(tmp_path: Path) -> None:
    folder = opened(tmp_path, "00000", POINT)
    rows = [TrialRow("00000", 2, "trials/00000", POINT, {"0": {"loss/global": x}}) for x in (1.0, 2.0)]
    folder.write_rows(rows)
    assert folder.rows() == rows[1:]


def test_why_a_metric_is_null(tmp_path: Path) -> None:
    folder = opened(tmp_path, "00000", POINT)
    where = folder.run_folder(1)
    where.mkdir(parents=True)
    event = {"kind": "not scored", "round": 2, "metrics": ["loss/global"], "reason": "NaN or infinity in part loss"}
    (where / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in ({"kind": "created"}, event)))
    assert folder.why_null(2, "loss/global", (0, 1)) == "NaN or infinity in part loss"
    assert folder.why_null(3, "loss/global", (0, 1)) == folder.why_null(2, "accuracy/global", (0, 1)) == ""


def test_an_outcome_is_of_the_whole_trial(tmp_path: Path) -> None:
    folder = opened(tmp_path, "00000", POINT)
    assert folder.outcome() is None
    for outcome in (Outcome("NaN", 1, diverged=3), Outcome("KeyError", certain=False, session="x")):
        folder.write_outcome(outcome)
        assert folder.outcome() == outcome == TrialFolder(tmp_path, "00000").outcome()
    folder.write_outcome(None)
    assert folder.outcome() is None and not list(folder.place.glob("*.json"))
