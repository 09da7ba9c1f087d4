"""Requests executed in this process, without the command line around them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed import report
from rayfed.errors import RunFailed
from rayfed.launch import start
from tests import toy

TINY = {"rounds": 2, "resources": {"gpus_per_actor": 0}}


def test_a_signal_before_a_run_begins_is_not_lost(tmp_path: Path) -> None:
    launcher = start.LocalLauncher()
    launcher.stop()
    with pytest.raises(RunFailed, match="stopped from outside"):
        start.start_request(toy.config(**TINY), launcher, out=tmp_path)
    (path,) = tmp_path.iterdir()
    assert not (path / "summary.json").exists()


def test_a_report_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written while the launcher closes, in another thread, whose error must not be lost."""

    def full(path: Path) -> None:
        raise OSError("no space left")

    closed: list[bool] = []
    launcher = start.LocalLauncher()
    monkeypatch.setattr(launcher, "close", lambda: closed.append(True))
    monkeypatch.setattr(report, "write_report", full)
    with pytest.raises(OSError, match="no space left"):
        start.start_request(toy.config(**TINY), launcher, out=tmp_path)
    assert closed == [True]
