"""The page of claims, and verdicts in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayfed.launch.claims_page import evidence, head_comment, interval_of, render, with_reproduction

RESULT: dict[str, Any] = {
    "metric": "accuracy/global", "at": 10, "better": "a", "than": "b", "margin": 0.0, "n": 5, "mean_difference": 0.05,
    "ci95": [0.01, 0.09], "verdict": "better", "holds": True, "p": 0.02, "effect": 1.5, "about": "A is better", "method": "a",
    "arms": {"a": {"mean": 0.9, "sd": 0.01, "n": 5}, "b": {"mean": 0.85, "sd": None, "n": 1}},
}  # fmt: skip
ENTRY: dict[str, Any] = {
    "registered": "2026-11-30", "seeds": [100, 101, 102], "wall_s": 120.0, "versions": {"torch": "2"}, "results": [RESULT],
    "cost": {"a": {"up": 1500.0, "down": 2e6, "accuracy_per_mb": 0.125}},
}  # fmt: skip


def test_the_page_has_a_line_per_claim_and_a_table_per_file(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n# More.\nname: small\n# not this\n")
    assert head_comment(file) == ["What it is.", "More."]
    page = render({"small": ENTRY}, {"small": file}, {})
    assert (
        "| [small](#small): A is better (a against b, accuracy/global at round 10, 5 seeds) | +0.0500 [+0.0100, +0.0900] "
        "| – | 0.020 | +1.5 | *better* |" in page
    )
    assert "`rayfed claims small`, seeds 100 to 102; 2 minutes of runs; torch 2; registered 2026-11-30." in page
    assert "| a | 0.9000 ± 0.0100 | 1.5 kB | 2.0 MB | 0.125 |" in page and "| b | 0.8500 | – | – | – |" in page
    assert "Stale" not in page and "not judged yet" not in page
    new = render({}, {"small": file}, {})
    assert "## Registered, not judged yet\n\n### small\n\nWhat it is.\n" in new
    stale = render({"small": ENTRY}, {"small": file}, {"small": ["settings", "code"]})
    assert "**Stale: the settings and the code changed after it was judged.**" in stale and "*better* (stale)" in stale


def test_margins_power_counts_and_withdrawals(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n")
    open_ = {
        **RESULT,
        "verdict": "undecided",
        "sd": 0.05,
        "n": 8,
        "margin": -0.02,
        "holds": None,
        "ci95": [-0.03, 0.05],
    }
    sent = {**RESULT, "kind": "bytes", "metric": "bytes/up", "mean_difference": 4e6, "ci95": [4e6, 4e6], "margin": 3e6}
    entry = {**ENTRY, "results": [RESULT, open_, sent]}
    page = render(
        {"small": entry, "gone": {**ENTRY, "withdrawn": "it was unstable", "title": "Gone"}}, {"small": file}, {}
    )
    assert "*undecided*, margin -0.02 open (sees 0.058)" in page and "2 tested claims: 1 better, 1 undecided" in page
    assert (
        "| [small](#small): A is better (a against b, bytes/up at round 10, margin 3,000,000) | +4,000,000 | yes |"
        in page
    )
    assert "- gone (Gone): it was unstable" in page and "## gone" not in page
    assert "| 0.040 | +1.5 | *better* |" in page  # Holm: 0.02 times the two tests of the page


def test_a_reproduction_is_the_same_word_within_the_interval(tmp_path: Path) -> None:
    again = {**ENTRY, "machine": "m", "commit": "c", "execution": {}, "results": [{**RESULT, "mean_difference": 0.08}]}
    first = with_reproduction(ENTRY, again)
    far = with_reproduction(first, {**again, "results": [{**RESULT, "mean_difference": 0.1}]})
    other = with_reproduction(far, {**again, "results": [{**RESULT, "verdict": "undecided"}]})
    assert [f["results"][0]["same"] for f in other["reproductions"]] == [True, False, False]
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n")
    assert "within the interval): 1 of 3" in render({"small": other}, {"small": file}, {})


def test_evidence_without_an_interval_and_with_a_margin() -> None:
    assert evidence(RESULT) == "accuracy/global at round 10, a - b: +0.0500 (95 % +0.0100 to +0.0900, 5 seeds)"
    open_ = {**RESULT, "ci95": None, "mean_difference": None, "margin": 3_639_380.0, "n": 1}
    assert evidence(open_).endswith("a - b: – (95 % – to –, 1 seeds, margin 3,639,380)")


def test_what_the_arms_share_in_execution_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n")
    fixed = "--set resources.executor=vmap --set resources.matmul=torch"
    execution = {"a": f"{fixed} --set resources.cohort=10", "b": f"{fixed} --set resources.cohort=5"}
    page = render({"small": {**ENTRY, "execution": execution, "threads": 1.0}}, {"small": file}, {})
    assert "; executor=vmap, matmul=torch; 1 thread." in page


def test_both_intervals_stand_there_and_the_wider_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text("# What it is.\n")
    by_row = {**RESULT, "rows": 360, "ci95_rows": [-0.03, 0.13], "verdict": "undecided", "sd": 0.05, "n": 8}
    assert interval_of(by_row) == [-0.03, 0.13] and interval_of({**by_row, "ci95_rows": [0.02, 0.08]}) == [0.01, 0.09]
    page = render({"small": {**ENTRY, "results": [by_row], "runs": 22}}, {"small": file}, {})
    assert "8 seeds, 360 rows) | +0.0500 [+0.0100, +0.0900] | [-0.0300, +0.1300] |" in page
    assert "(sees 0.116)" in page and "2 minutes of 22 runs" in page  # twice what 8 seeds alone would see, 0.058
    assert evidence(by_row).endswith("(95 % -0.0300 to +0.1300, 8 seeds, 360 rows)")
    again = {
        "machine": "m",
        "commit": "c",
        "execution": {},
        "versions": {},
        "results": [{**by_row, "mean_difference": 0.12}],
    }
    assert with_reproduction({**ENTRY, "results": [by_row]}, again)["reproductions"][0]["results"][0]["same"]


def test_one_question_on_several_data_sets(tmp_path: Path) -> None:
    files = {n: tmp_path / f"{n}.yaml" for n in ("digits", "fashion", "alone")}
    for f in files.values():
        f.write_text("# What it is.\n")
    worse = {**RESULT, "verdict": "worse", "holds": False, "mean_difference": -0.05}
    close = {**RESULT, "about": "B is close", "margin": -0.02, "verdict": "equal within 0.02", "holds": True}
    entries = {
        "digits": {**ENTRY, "results": [RESULT, close]},
        "fashion": {**ENTRY, "like": "digits", "results": [worse]},
        "alone": ENTRY,
    }
    page = render(entries, files, {})
    assert "## digits on 2 data sets" in page and "| claim | digits | fashion | holds on |" in page
    assert "| A is better | +0.0500 *better* | -0.0500 *worse* | 1 of 2 |" in page
    assert "| B is close | +0.0500 *equal within 0.02* | – | 1 of 1 |" in page and "alone on" not in page
