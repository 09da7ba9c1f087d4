"""runs, report and monitor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import toy
from tests.unit.cli.commands import Call


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run in the folder `out`."""
    return toy.run_folder({"name": "ifca", "clusters": 3}, tmp_path / "out", rounds=2).folder.path


def test_runs_and_report(finished: Path, call: Call) -> None:
    line = next(x for x in call("runs", "out").out.splitlines() if x.startswith(finished.name))
    assert line.split() == [finished.name, "run", "ifca", "2/2", "done"]
    said = call("report", f"out/{finished.name}")
    assert (said.code, said.out) == (0, f"out/{finished.name}/report.html\n")
    assert (finished / "report.html").stat().st_size > 10_000


def test_runs_as_json_and_of_an_empty_folder(finished: Path, call: Call, tmp_path: Path) -> None:
    (found,) = json.loads(call("runs", "out", "--json").out)
    wanted = {
        "kind": "run",
        "method": "ifca",
        "status": "done",
        "round": 2,
        "rounds": 2,
        "path": f"out/{finished.name}",
    }
    assert {k: found[k] for k in wanted} == wanted
    (tmp_path / "runs").mkdir()
    assert call("runs").out == "no runs in runs\n"
    assert json.loads(call("runs", "--json").out) == []


def test_monitor(call: Call, tmp_path: Path) -> None:
    nothing = call("monitor", str(tmp_path))
    assert nothing.code == 2 and "--serve" in nothing.err
    missing = call("monitor", str(tmp_path / "no"), "--serve")
    assert missing.code == 2 and "is not a folder" in missing.err
    wrote = call("monitor", "--out", str(tmp_path / "out"))
    assert wrote.code == 0 and (tmp_path / "out" / "prometheus.yml").is_file()
    assert f"prometheus --config.file={tmp_path}/out/prometheus.yml" in wrote.out and "grafana" in wrote.out
