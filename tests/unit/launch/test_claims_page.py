"""The page of claims, and verdicts in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayfed.launch.claims_page import evidence, head_comment, render

RESULT: dict[str, Any] = {
    "metric": "accuracy/global", "at": 10, "better": "a", "than": "b", "margin": 0.0, "n": 5, "mean_difference": 0.05,
    "ci95": [0.01, 0.09], "verdict": "holds", "about": "A is better", "method": "a",
    "arms": {"a": {"mean": 0.9, "sd": 0.01, "n": 5}, "b": {"mean": 0.85, "sd": None, "n": 1}},
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "seeds": [100, 101, 102], "wall_s": 120.0, "versions": {"torch": "2"}, "results": [RESULT],
    "cost": {"a": {"up": 1500.0, "down": 2e6, "accuracy_per_mb": 0.125}},
}  # fmt: skip


def test_the_page_has_a_line_per_claim_and_a_table_per_file(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n# More.\nname: small\n# not this\n")
    assert head_comment(file) == ["What it is.", "More."]
    page = render({"small": ENTRY}, {"small": file}, ())
    assert (
        "| [small](#small): A is better (a against b, accuracy/global at round 10, 5 seeds) | +0.0500 [+0.0100, +0.0900] | *holds* |"
        in page
    )
    assert "`rayfed claims small`, seeds 100 to 102; 2 minutes of runs; torch 2." in page
    assert "| a | 0.9000 ± 0.0100 | 1.5 kB | 2.0 MB | 0.125 |" in page and "| b | 0.8500 | – | – | – |" in page
    assert "have changed" not in page and "have changed" in render({"small": ENTRY}, {"small": file}, {"small"})


def test_evidence_without_an_interval_and_with_a_margin() -> None:
    assert evidence(RESULT) == "accuracy/global at round 10, a - b: +0.0500 (95 % +0.0100 to +0.0900, 5 seeds)"
    open_ = {**RESULT, "ci95": None, "mean_difference": None, "margin": 3_639_380.0, "n": 1}
    assert evidence(open_).endswith("a - b: – (95 % – to –, 1 seeds, margin 3,639,380)")
