"""The page of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from rayfed.report.sweep import write_sweep
from tests.unit.report.folders import make_sweep


def test_the_page_has_tables_and_pictures(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    write_sweep(path)
    assert pq.read_table(path / "sweep.parquet").num_rows == 11
    assert json.loads((path / "summary.json").read_text())["best"][0]["trial"] == "00004"
    html = (path / "sweep.html").read_text()
    for piece in (
        "accuracy/global: clusters and alpha",
        "Parallel coordinates",
        "by round and alpha",
        "rayfed sweep --resume",
        "prefers-color-scheme:dark",
    ):
        assert piece in html, piece
    assert "<script" not in html and "http-equiv" not in html and 'src="http' not in html
    pictures = {p.name for p in (path / "plots").iterdir()}
    assert pictures == {"heat-clusters-alpha.png", "parallel.png", "curves-clusters.png", "curves-alpha.png"}
    assert html.index(">00004<") < html.index(">00000<"), "best first"


def test_trials_that_diverged_or_failed_are_on_the_page(tmp_path: Path) -> None:
    """And in the summary and the table; what they scored before counts in no picture."""
    path = make_sweep(tmp_path / "s")
    for trial, outcome in (("00004", {"reason": "NaN", "diverged": 5}), ("00003", {"reason": "KeyError: '<x>'"})):
        (path / "trials" / trial / "outcome.json").write_text(json.dumps(outcome))
    summary = write_sweep(path)
    html = (path / "sweep.html").read_text()
    assert ">diverged in round 5<" in html and "failed: KeyError: &#39;&lt;x&gt;&#39;" in html
    assert "3 complete, 1 diverged, 1 failed, 6 begun of 6" in html and html.index(">00000<") < html.index(">00004<")
    assert [(d["trial"], d["diverged"]) for d in summary["diverged"]] == [("00004", 5)]
    assert [(d["trial"], d["error"]) for d in summary["errors"]] == [("00003", "KeyError: '<x>'")]
    assert summary["status"] == "incomplete" and summary["failed"] == 1 and len(summary["best"]) == 4
    rows = pq.read_table(path / "sweep.parquet").to_pylist()
    (last,) = [r for r in rows if r["diverged"]]
    assert (last["trial"], last["round"], last["n"], last["accuracy/global"]) == ("00004", 5, 0, None)
    assert last["method.clusters"] == 5 and len(rows) == 12


def test_a_sweep_whose_trials_all_diverge_is_done(tmp_path: Path) -> None:
    path = make_sweep(tmp_path / "s")
    for trial in (path / "trials").iterdir():
        (trial / "outcome.json").write_text(json.dumps({"reason": "NaN", "diverged": 2}))
        (trial / "rows.jsonl").unlink()
    summary = write_sweep(path)
    assert summary["status"] == "done" and summary["best"] == [] and summary["trials"]["complete"] == 0
    assert (path / "sweep.html").read_text().count(">diverged in round 2<") == 6
