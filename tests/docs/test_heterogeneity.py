"""docs/heterogeneity.md: its table is measured, its pictures are all there."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import pytest

from rayfed import partition
from rayfed.launch.preflight import load_request
from rayfed.partition import describe as d
from tests.unit.partition.small import ROOT

PAGE = ROOT / "docs/heterogeneity.md"


@pytest.fixture(scope="module")
def make() -> Any:
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs/pictures/make.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def table(name: str) -> list[list[str]]:
    """The cells of one of the page's tables, without its head."""
    text = PAGE.read_text().split(f"<!-- make.py {name} -->\n")[1].split("\n<!-- end -->")[0]
    return [[x.strip() for x in r.strip("|").split("|")] for r in text.splitlines()][2:]


def test_the_pages_table_is_what_its_script_measures(make: Any) -> None:
    """Label distance and Gini of the cheap kinds, of every alpha; the rest of the table comes from the same call."""
    rows = table("kinds")
    assert [r[0] for r in rows] == [k for k in make.KINDS for _ in make.ALPHAS]
    assert [float(r[1]) for r in rows] == list(make.ALPHAS) * len(make.KINDS)
    for name, alpha, label, *_, gini, _, _ in rows:
        if make.KINDS[name]["kind"] != "embedding":
            c = load_request(make.config_of(name, float(alpha)))
            made = [partition.build(c.model_copy(update={"seed": s})) for s in make.SEEDS]
            assert label == make.spread(d.label_distance(f.class_counts) for f in made)
            assert gini == f"{np.mean([d.gini(f.train.sizes()) for f in made]):.2f}"


def test_self_balancing_deals_as_flower_does(make: Any) -> None:
    """By the rule, class after class: who has more than the mean gets no more; everybody ends with 10 rows, and with all of one
    class first the second goes to others."""
    rng, y = np.random.default_rng(0), np.repeat([3, 1, 2, 0], 100)
    owner = make.balanced(y, 8, 0.3, rng)
    sizes = np.zeros(8)
    for c in (3, 1, 2, 0):
        got = np.bincount(owner[y == c], minlength=8)
        assert (
            got[sizes > 400 / 8].max(initial=0) <= 1
        )  # shares are cut down to whole rows, and the last client gets what is left
        sizes += got
    assert sizes.min() >= 10 and sizes.sum() == 400
    plain = np.bincount(make.balanced(y[:300], 2, 1e6, rng), minlength=2)
    assert abs(plain - 150).max() <= 3  # large alpha: even, to a row of each class


def test_pacfls_measures_find_what_the_page_says(make: Any) -> None:
    """One kind of groups, every measure; the default finds them all."""
    rows, at = table("pacfl"), list(make.GROUPS).index("four rotations")
    found = [make.found_groups({**make.GROUPS["four rotations"], "clients": 16}, s) for s in make.SEEDS]
    assert [r[0] for r in rows] == list(make.MEASURES)
    for name, *cells in rows:
        assert cells[at] == make.spread(f[name] for f in found)


def test_the_pages_pictures_are_there_small_and_all_used() -> None:
    pages = [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    files = {f.name for f in (ROOT / "docs/pictures").glob("*.png")}
    shown = [set(re.findall(r"\(pictures/([\w-]+\.png)\)", page)) for page in (*pages, PAGE.read_text())]
    assert shown[-1] and set().union(*shown) == files
    assert all((ROOT / "docs/pictures" / f).stat().st_size < 60_000 for f in files)
