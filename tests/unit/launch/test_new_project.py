"""A new project runs as it is, and its files say no more than they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.launch import new_project
from rayfed.launch.new_project import FILES, write_project
from rayfed.launch.preflight import load_request
from rayfed.launch.start import run_local
from tests.configs import refusal


def test_its_config_is_right_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method with a step of 1 is FedAvg: both arms have the same rows."""
    monkeypatch.setattr("rayfed.report.write_report", lambda path: path)
    assert [f.name for f in write_project(tmp_path / "new")] == list(FILES)
    monkeypatch.chdir(tmp_path / "new")
    done = run_local(load_request("config.yaml", ["rounds=2", "seeds=[0]", "evaluate.every=1"]))
    assert done.status == "done" and list(done.summary["arms"]) == ["fedavg", "mine"]
    assert done.summary["arms"]["fedavg"]["accuracy/global"] == done.summary["arms"]["mine"]["accuracy/global"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine")
    assert refusal(write_project, tmp_path).startswith(f"init: {tmp_path} has model.py already")
    assert refusal(write_project, tmp_path / "model.py").endswith("is a file; name a folder")
    assert [f.name for f in tmp_path.iterdir()] == ["model.py"]


def test_what_it_writes_is_shipped() -> None:
    assert {f.name for f in new_project.PROJECT.iterdir() if f.is_file()} == set(FILES)
