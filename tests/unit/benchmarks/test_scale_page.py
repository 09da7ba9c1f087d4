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


def test_events_are_priced_beside_a_synchronous_round() -> None:
    first, second = (
        {**POINT, "x": n, "round_s": s, "rounds": 22, "pss_mb": m}
        for n, s, m in ((1, 0.004, 900.0), (10, 0.02, 1000.0))
    )
    more = {
        "devices": 100_000, "at_work": 1000, "synchronous": {**POINT, "round_s": 0.5, "pss_mb": 1100.0},
        "longer": {**second, "rounds": 220, "round_s": 0.022, "pss_mb": 1010.0},
    }  # fmt: skip
    curve = {"x": "replies a step", "about": {}, "slope": 0, "slope_of_last_two": 0, "points": [first, second], **more}
    said = scale_page.write({"events": curve})
    assert "A reply of a step: 4.00 ms of 1, 2.00 ms of 10. A synchronous round of 1,000 clients" in said
    assert (
        "takes 0.5 s, 0.50 ms a client. 220 steps of 10 replies in the place of 22: 1.01 x the memory, 1.10 x the time of a step."
        in said
    )
