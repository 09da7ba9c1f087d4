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
