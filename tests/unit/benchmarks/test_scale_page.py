"""SCALE.md, from made-up figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import scale_page

ROOT = Path(__file__).resolve().parents[3]
POINT = {"x": 1000, "round_s": 0.04, "least_s": 0.03, "most_s": 0.2, "outside_rounds_s": 9.24}


def written(**curve: Any) -> list[str]:
    return scale_page.write(
        {"population": {"x": "population", "about": {}, "slope": 0, "slope_of_last_two": 0, **curve}}
    ).splitlines()


def test_a_point_has_its_evaluation_in_rounds_its_start_and_its_memory() -> None:
    whole = {**POINT, "evaluate_s": 0.06, "first_round_s": 4.06, "pss_mb": 1500.4, "cpu_s": 12.2}
    assert "| 1,000 | 0.04 (0.03 to 0.2) | 0.06 (1.5 x a round) | 4.1 | 1,500 | 12 | 9.2 |" in written(points=[whole])


def test_what_was_not_measured_is_a_dash() -> None:
    assert "| 1,000 | 0.04 (0.03 to 0.2) | – | – | – | – | 9.2 |" in written(points=[POINT])


def test_two_populations_are_compared_by_what_was_measured_of_them() -> None:
    ratios = {"compared": [10, 1_000_000], "round_s_ratio": 1.2, "pss_mb_ratio": 1.5}
    said = "A population of 1,000,000 against one of 10: 1.20 x the time of a round, 1.50 x the memory"
    assert f"{said}." in written(points=[POINT], **ratios)
    assert f"{said}, 1.10 x the time to the first round." in written(points=[POINT], **ratios, first_round_s_ratio=1.1)


def test_the_page_is_that_of_the_measured_figures() -> None:
    folder = ROOT / "benchmarks"
    found = json.loads((folder / "scale.json").read_text())["curves"]
    assert (folder / "SCALE.md").read_text() == scale_page.write(found)
