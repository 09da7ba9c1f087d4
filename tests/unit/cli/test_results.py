"""runs, report and monitor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfed.launch.preflight import load_request
from rayfed.launch.start import run_local
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


# -- for papers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two arms with two seeds."""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayfed.report.write_report", lambda path: path)
        arms = {"one": {"method": "fedavg"}, "two": {"method": "local_only"}}
        request = load_request({**toy.TOY, "method": "fedavg", "rounds": 1, "seeds": [0, 1], "arms": arms})
        return run_local(request, out=tmp_path_factory.mktemp("study")).path


def test_figures_of_a_study(call: Call, study: Path, tmp_path: Path) -> None:
    said = call("report", str(study), "--figures", "figures", "--format", "svg")
    files = [Path(line) for line in said.out.splitlines()]
    assert said.code == 0 and {f.name for f in files} >= {"accuracy.svg", "loss.svg", "cost.svg"}
    assert all(f.read_text().startswith("<?xml") for f in files) and not (study / "report.html").exists()
    said = call("report", str(study), "--figures", "figures", "--format", "sgv")
    assert said.code == 2 and "(did you mean 'svg'?), allowed: pdf, svg, png" in said.err


def test_a_table_of_a_study(call: Call, study: Path) -> None:
    said = call("report", str(study), "--table", "latex", "--metric", "accuracy/global")
    assert said.code == 0 and said.out.startswith("% Final values") and "Caution: 2 seeds only" in said.out
    assert "arm & accuracy/global & seeds" in said.out
    both = call("report", str(study), "--table", "csv", "--figures", "f", "--format", "png")
    assert both.out.startswith("arm,metric,mean,sd,ci95,n,rank,wilcoxon,holm\n") and "f/accuracy.png" in both.err
    runs = [str(study / arm / "seed-0") for arm in ("one", "two")]
    assert "| local_only |" in call("report", *runs, "--table", "md").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--metric", "a/b"], "report: --metric chooses columns of --table"),
        (["--table", "tex"], "--table: 'tex' found (did you mean 'latex'?), allowed: md, latex, csv"),
        (["--table", "md", "--out", "x.html"], "--figures DIR takes figures"),
        (["--table", "md", "--metric", "accurcy/global"], "(did you mean 'accuracy/global'?)"),
    ],
)
def test_what_does_not_go_together(call: Call, study: Path, words: list[str], says: str) -> None:
    said = call("report", str(study), *words)
    assert said.code == 2 and says in said.err, said.err


def test_export(call: Call, finished: Path, tmp_path: Path) -> None:
    said = call("export", str(finished), "--out", "there", "--model", "expert-1")
    assert said.code == 0 and said.out.split() == ["there/README.md", "there/model.safetensors"], said.err
    said = call("export", str(finished), "--out", "there")
    assert said.code == 2 and "--model: 'model' found" in said.err and "is no empty folder" in said.err
