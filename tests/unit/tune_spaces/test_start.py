"""`rayfed sweep` where it ends before Ray starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from rayfed import cli
from tests.unit.tune_spaces.tools import RAW


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**RAW, "resources": {"actors": 4000, "executor": "loop", "cohort": 2}}))

    def end(*args: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["rayfed", "sweep", *map(str, args)])
        with pytest.raises(SystemExit) as error:
            cli.main()
        return int(error.value.code or 0)

    assert end("clustrs", file) == 2 and "did you mean 'clusters'" in capsys.readouterr().err
    assert end("clusters", file, "--out", tmp_path / "o", "--address", "local") == 3
    assert "4000 actors" in capsys.readouterr().err and not (tmp_path / "o").exists() and not ray.is_initialized()
    assert end() == 2 and "participation" in capsys.readouterr().err
    assert end("--resume", tmp_path) == 2 and "sweep.yaml" in capsys.readouterr().err
    assert end("--resume", tmp_path, "--out", tmp_path) == 2 and "leave out --out" in capsys.readouterr().err
