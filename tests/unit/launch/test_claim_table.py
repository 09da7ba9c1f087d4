"""The table of the personalised methods: means, paired differences and verdicts by hand, and what is not judged."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from rayfed.launch import claim_table

SEEDS = range(8)
FINETUNED = {str(s): 0.80 + 0.01 * s for s in SEEDS}
VALUES = {
    "finetuned": FINETUNED,
    "ditto": {s: v + 0.05 + 0.001 * (int(s) % 2) for s, v in FINETUNED.items()},
    "moon": {s: v + (0.02 if int(s) % 2 else -0.02) for s, v in FINETUNED.items()},
}


def entry(**more: Any) -> dict[str, Any]:
    means = {
        a: {"mean": statistics.fmean(v.values()), "sd": statistics.stdev(v.values()), "n": 8} for a, v in VALUES.items()
    }
    result = {"metric": "accuracy/personal", "at": 30, "arms": means, "values": VALUES}
    other = {"metric": "accuracy/global", "at": 30, "arms": {}, "values": {}}
    cost = {a: {"up": 1000.0, "down": 2000.0} for a in VALUES}
    return {"results": [other, result], "seeds": list(SEEDS), "cost": cost, "registered": "2026-12-01", **more}


def rows(page: str) -> dict[str, list[str]]:
    """Cells of the first table by method."""
    table = page.partition("## Digits")[2].partition("## ")[0]
    return {c[1].strip(): [x.strip() for x in c[2:-1]] for line in table.splitlines() if len(c := line.split("|")) == 7}


def page(verdicts: dict[str, Any], changed: dict[str, list[str]] | None = None) -> dict[str, list[str]]:
    return rows(claim_table.render(verdicts, changed or {}, {f: list(VALUES) for f in claim_table.FILES}))


def test_differences_are_paired_with_the_tuned_global_model() -> None:
    found = page({"personal_skew": entry()})
    assert found["finetuned"] == ["not judged", "0.8350 ± 0.0245", "not judged", "1.0 kB, 2.0 kB"]
    # +0.05 and +0.051 in turn: mean 0.0505, sd 0.000535, t of 7 degrees 2.3646
    assert found["ditto"][1] == "0.8855 ± 0.0246<br>+0.0505 [+0.0501, +0.0509] *better*"
    assert found["moon"][1].endswith("*undecided*")
    assert found["moon"][0] == found["moon"][2] == "not judged"


def test_what_is_not_to_be_relied_on_says_so() -> None:
    shaken = entry(stability={"ditto": {"unstable": True}})
    assert page({"personal_skew": shaken})["ditto"][1].endswith("*unstable*")
    assert page({"personal_skew": entry()}, {"personal_skew": ["code"]})["ditto"][1].endswith("*better* (stale)")
    assert page({"personal_skew": {**entry(), "registered": None}})["moon"][1].endswith("(not registered)")


def test_a_verdict_that_many_comparisons_do_not_leave_is_in_parentheses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_table, "holm", lambda p: [0.06 for _ in p])
    assert page({"personal_skew": entry()})["ditto"][1].endswith("(*better*)")


def test_nothing_judged_is_a_page_too() -> None:
    found = page({})
    assert {tuple(c) for m, c in found.items() if m in VALUES} == {("not judged",) * 4}
