"""What a notebook shows of runs, studies and sweeps, and the curves as files."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

import rayfed
from rayfed.launch.preflight import load_request
from rayfed.launch.start import run_local
from rayfed.report.picture import Picture
from tests import toy
from tests.configs import refusal
from tests.unit.report.folders import make_sweep


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> rayfed.Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayfed.report.write_report", lambda path: path)
        raw = {
            **toy.TOY,
            "rounds": 2,
            "seeds": [0, 1],
            "arms": {"one": {"method": "fedavg"}, "two": {"method": "local_only"}},
            "method": "fedavg",
        }
        done = run_local(load_request(raw), out=tmp_path_factory.mktemp("study"))
    found = rayfed.load(done.path)
    assert isinstance(found, rayfed.Study)
    return found


def pixels(html: str) -> int:
    (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return len(base64.b64decode(content))


def test_a_run(study: rayfed.Study) -> None:
    run = study.arms["one"][0]
    html = run._repr_html_()
    assert "accuracy/global" in html and "round 2 of 2" in html and pixels(html) > 1000
    assert run.status == "done"


def test_a_study_and_its_table(study: rayfed.Study) -> None:
    html = study._repr_html_()
    assert "2 arms, 4 of 4 runs done" in html and pixels(html) > 1000
    table = study.table("accuracy/global")
    assert table.arms == ("one", "two") and table.metrics == ("accuracy/global",)
    finals = [r.summary["metrics"]["accuracy/global"]["final"] for r in study.arms["one"].values()]  # type: ignore[index]
    assert table.cells["one", "accuracy/global"].mean == pytest.approx(sum(finals) / 2)


def test_curves_are_drawn_saved_and_refused(study: rayfed.Study, tmp_path: Path) -> None:
    picture = study.plot()
    assert isinstance(picture, Picture) and picture._repr_png_().startswith(b"\x89PNG")
    for name, begins in (("a.pdf", b"%PDF"), ("a.svg", b"<?xml"), ("a.png", b"\x89PNG")):
        assert picture.save(tmp_path / name).read_bytes().startswith(begins)
    assert (tmp_path / "a.pdf").read_bytes() == picture.save(tmp_path / "b.pdf").read_bytes()
    chosen = study.plot("loss/personal", "bytes/up").figure()
    assert [axis.get_title() for axis in chosen.axes] == ["loss/personal", "bytes/up"]
    assert len(chosen.axes[0].lines) == 2  # an arm each
    assert "was not measured (did you mean 'loss/personal'?)" in refusal(study.plot, "loss/persona")
    assert "allowed: a file that ends in .pdf, .svg, .png" in refusal(picture.save, tmp_path / "a.jpg")


def test_runs_as_a_list(study: rayfed.Study, tmp_path: Path) -> None:
    found = rayfed.runs(study.path.parent)
    assert list(found) == [study] and study.path.name in found._repr_html_() and "done" in found._repr_html_()
    assert rayfed.runs(tmp_path) == [] and "is not a folder" in refusal(rayfed.runs, tmp_path / "no")


def test_reports_and_comparisons(study: rayfed.Study, tmp_path: Path) -> None:
    run = study.arms["one"][0]
    assert rayfed.report(run) == run.path / "report.html" and (run.path / "report.html").is_file()
    page = rayfed.compare(run, study.arms["two"][0].path, out=tmp_path / "two.html")
    assert "local_only" in page.read_text() or "two" in page.read_text()
    assert "nothing to compare" in refusal(rayfed.compare)


def test_a_sweep(tmp_path: Path) -> None:
    found = rayfed.load(make_sweep(tmp_path / "s"))
    assert isinstance(found, rayfed.Sweep) and "method.clusters" in found._repr_html_()
    assert "5 of 6 trials complete" in found._repr_html_()
    assert next(iter(found.trials)) == "00004" and found.results().num_rows == 11
    assert [r.path.name for r in found.trials["00004"].values()] == ["seed-0", "seed-1"]
