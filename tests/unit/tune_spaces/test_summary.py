"""How a sweep with failed trials ends: each is named, and a second try is advised only where it may end otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rayfed.storage.sweep_folder import Outcome, load_sweep
from tests.unit.report.folders import make_sweep
from tune_spaces.sweep.summary import failure, note_failure, resume_command
from tune_spaces.sweep.trial_folder import TrialFolder

RAISED = Outcome("client 3 failed in round 1, visit 'train': KeyError: 'x'", seed=1, session="s")


def test_advice(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    TrialFolder(path, "00001").write_outcome(Outcome("NaN", diverged=3))
    TrialFolder(path, "00005").write_outcome(RAISED)
    says = str(failure(path, 1, 6, "rayfed sweep --resume s"))
    assert says.startswith(f"1 of 6 trials failed; the first: trials/00005, seed 1: {RAISED.reason}\nEach is named")
    assert "would fail again; once it is mended: rayfed sweep --resume s --accept-changes" in says
    TrialFolder(path, "00004").write_outcome(replace(RAISED, certain=False))
    assert "rayfed sweep --resume s" in str(failure(path, 2, 6, "rayfed sweep --resume s"))
    TrialFolder(path, "00004").write_outcome(None)
    assert "--resume" in str(failure(path, 2, 6, "rayfed sweep --resume s")), "one of them is not known"


def test_what_a_trials_process_could_not_note(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    note_failure(path, "00002", "Failure # 1\n  File x\nray.exceptions.ActorDiedError: gone")
    note_failure(path, "00002", "another")
    note_failure(path, "00007", "rayfed.errors.RunFailed: no disk\nmore")
    outcomes = {t.name: t.outcome for t in load_sweep(path).unsound}
    assert outcomes == {
        "00002": Outcome("ray.exceptions.ActorDiedError: gone", certain=False),
        "00007": Outcome("rayfed.errors.RunFailed: no disk", certain=False),
    }


def test_the_command_in_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert resume_command(here / "a b", None) == "rayfed sweep --resume 'a b'"
    here.rmdir()
    assert resume_command(Path("/x/s"), None) == "rayfed sweep --resume /x/s"
    assert resume_command(Path("/x/s"), "s3://b/s") == "rayfed sweep --resume s3://b/s"
