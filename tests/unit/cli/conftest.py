"""`call` runs a command in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rayfed import cli
from tests.unit.cli.commands import Call, Ended


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report of single runs: they take most of a tiny run's time."""
    from rayfed import report

    whole = report.write_report
    monkeypatch.setattr(report, "write_report", lambda path: whole(path) if (path / "study.yaml").exists() else path)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs `rayfed WORDS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def ends(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["rayfed", *words])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return ends
