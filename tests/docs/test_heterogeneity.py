"""docs/heterogeneity.md: its table is measured, its pictures are all there."""

from __future__ import annotations

import importlib.util
import re

import numpy as np

from rayfed import partition
from rayfed.launch.preflight import load_request
from rayfed.partition import describe as d
from tests.unit.partition.small import ROOT


def test_the_pages_table_is_what_its_script_measures() -> None:
    """Label distance and Gini of the cheap kinds, of every alpha; the rest of the table comes from the same call."""
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/pictures/make.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    page = (ROOT / "docs/heterogeneity.md").read_text()
    rows = [[x.strip() for x in r.strip("|").split("|")] for r in page.splitlines() if r.startswith("| ")][1:]
    assert [r[0] for r in rows] == [k for k in make.KINDS for _ in make.ALPHAS]
    assert [float(r[1]) for r in rows] == list(make.ALPHAS) * len(make.KINDS)
    for name, alpha, label, *_, gini, _, _ in rows:
        if make.KINDS[name]["kind"] != "embedding":
            kind = {**make.KINDS[name], "alpha": float(alpha)}
            made = [partition.build(load_request(make.config(kind)).model_copy(update={"seed": s})) for s in make.SEEDS]
            distances = [d.label_distance(f.class_counts) for f in made]
            assert label == f"{np.mean(distances):.2f} ± {np.std(distances, ddof=1):.2f}"
            assert gini == f"{np.mean([d.gini(f.train.sizes()) for f in made]):.2f}"


def test_the_pages_pictures_are_there_small_and_all_used() -> None:
    page = (ROOT / "docs/heterogeneity.md").read_text()
    files = {f.name for f in (ROOT / "docs/pictures").glob("*.png")}
    assert set(re.findall(r"\(pictures/([\w-]+\.png)\)", page)) == files
    assert all((ROOT / "docs/pictures" / f).stat().st_size < 60_000 for f in files)
