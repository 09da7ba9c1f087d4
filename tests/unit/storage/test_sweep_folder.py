"""The folder of a sweep."""

from __future__ import annotations

from pathlib import Path

import yaml

from rayfed.storage.sweep_folder import load_sweep
from tests.unit.report.folders import make_sweep


def test_lower_may_be_better(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    about = yaml.safe_load((path / "sweep.yaml").read_text())
    (path / "sweep.yaml").write_text(yaml.safe_dump({**about, "mode": "min"}))
    assert load_sweep(path).ranked[0].name == "00000"
