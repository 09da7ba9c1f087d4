"""Sinks: which packages they need, and what happens when one fails."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rayfed import track
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import toy
from tests.unit.track.fakes import FakeMLflow, FakeWandB, events


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    absent = ("mlflow", "wandb", "sqlalchemy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n in absent else real(n, *a))


@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(ConfigError) as caught:
        load_request({**toy.TOY, "method": "fedavg", "track": ["tensorboard", "mlflow", "wandb"]})
    assert caught.value.problems == [
        "track.1: 'mlflow' needs the package mlflow, which is not installed; pip install 'rayfed-engine[mlflow]'",
        "track.2: 'wandb' needs the package wandb, which is not installed; pip install 'rayfed-engine[wandb]'",
    ]


def test_the_extras_are_the_projects() -> None:
    from tests.conftest import ROOT

    project = (ROOT / "pyproject.toml").read_text()
    assert 'name = "rayfed-engine"' in project
    for extra in track.EXTRAS:
        assert f'\n{extra} = ["{extra}>=' in project and extra in track.SINKS


def test_a_folder_of_logs_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself makes a folder wandb/ where it is run."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert "needs the package wandb" in track.missing(["wandb"])[0]


def test_a_sink_that_fails_does_not_end_the_run_and_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow(monkeypatch)
    wandb = FakeWandB(monkeypatch)
    log = wandb.log

    def fails_after_one(row: dict[str, float], step: int) -> None:
        log(row, step)
        fake.broken = True

    wandb.log = fails_after_one  # type: ignore[method-assign]
    ran = toy.run_folder("fedavg", tmp_path, rounds=3, track=["mlflow", "wandb", "tensorboard"])
    assert ran.ending.status == "done" and [r["round"] for r in ran.rows] == [1, 2, 3]
    (failed,) = events(ran.folder.path, "tracking failed")
    assert failed["sink"] == "mlflow" and "second line" in failed["error"]
    notes = json.loads((ran.folder.path / "summary.json").read_text())["notes"]
    about = "track: mlflow failed (ConnectionError: no route to host); it ends before round 2, the run folder has everything"
    assert [n for n in notes if n.startswith("track")] == [about]
    assert [s for s, _ in wandb.logged] == [1, 2, 3]  # the others go on
    assert any((ran.folder.path / "tensorboard").iterdir())
    assert fake.runs["r0"]["status"] == ["RUNNING", "FAILED"]


def test_a_sink_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandB(monkeypatch)

    def refuse(**arguments: Any) -> Any:
        raise RuntimeError("api key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    ran = toy.run_folder("fedavg", tmp_path, rounds=1, track=["wandb"])
    assert ran.ending.status == "done" and not fake.logged
    (failed,) = events(ran.folder.path, "tracking failed")
    assert "api key not configured" in failed["note"] and "nothing was written to it" in failed["note"]


def test_a_run_that_fails_is_marked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, wandb = FakeMLflow(monkeypatch), FakeWandB(monkeypatch)
    monkeypatch.setattr("rayfed.engine.evaluation.Evaluator.evaluate", lambda *a: 1 / 0)
    with pytest.raises(Exception, match="division by zero"):
        toy.run_folder("fedavg", tmp_path, track=["mlflow", "wandb"])
    assert fake.runs["r0"]["status"][-1] == "FAILED" and wandb.exits == [1]
