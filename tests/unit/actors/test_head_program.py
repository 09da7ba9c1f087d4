"""The program that runs on the head: answers as lines, states, folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actors.jobs import head_program
from rayfed.launch.progress import line
from tests import toy


def test_the_state_of_a_study_and_of_a_sweep_is_that_of_their_newest_run(tmp_path: Path) -> None:
    for i, where in enumerate(("a/seed-0", "b/seed-1")):
        (tmp_path / "study" / where).mkdir(parents=True)
        (tmp_path / "study" / where / "state.json").write_text(json.dumps({"round": i}))
    (tmp_path / "sweep" / "trials" / "00004" / "seed-2").mkdir(parents=True)
    (tmp_path / "sweep" / "trials" / "00004" / "seed-2" / "state.json").write_text('{"round": 7}')
    os.utime(tmp_path / "study" / "a" / "seed-0" / "state.json", (0, 0))
    study, sweep = head_program.read_state(tmp_path / "study"), head_program.read_state(tmp_path / "sweep")
    assert study == {"arm": "b", "seed": 1, "round": 1} and line(study) == "b seed 1  round 1/?"
    assert sweep == {"trial": "00004", "seed": 2, "round": 7} and line(sweep) == "trial 00004 seed 2  round 7/?"


def test_a_folder_is_named_by_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayfed.launch.start import run_local

    monkeypatch.setattr("rayfed.report.write_report", lambda path: None)
    monkeypatch.setenv("RAYFED_RUN_ID", "toy-1")
    done = run_local(toy.config(rounds=1), out=tmp_path)
    assert done.path == tmp_path / "toy-1"
    monkeypatch.setenv("RAYFED_HOME", str(tmp_path.parent))
    assert head_program.run_folder(tmp_path.name, "toy-1") == done.path
    assert head_program.read_state(done.path)["round"] == 1


def test_it_runs_alone_with_the_standard_library(tmp_path: Path) -> None:
    shutil.copyfile(head_program.__file__, tmp_path / "head_program.py")
    command = [sys.executable, "-I", "-S", str(tmp_path / "head_program.py"), "probe", "peft"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (answer,) = head_program.read_answers(done.stdout.splitlines())
    assert isinstance(answer, head_program.Environment), done.stderr
    assert answer.ray is None and answer.missing == ["peft"] and answer.python == sys.version.split()[0]


def test_the_fingerprint_covers_packages_in_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"actors/jobs/fetch.py", "rayfed/__init__.py"} <= set(head_program.find_sources())
    for name in ("outer", "outer/inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    monkeypatch.setattr(head_program, "PACKAGES", ("outer",))
    monkeypatch.syspath_prepend(tmp_path)
    before = head_program.fingerprint()
    (tmp_path / "outer" / "inner" / "__init__.py").write_text("x = 1\n")
    assert head_program.fingerprint() != before
