"""Published verdicts are judged again from their published values."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rayfed.launch import claims
from rayfed.launch.claim_check import differences, has_values, judged_again
from rayfed.launch.claim_file import drawn_seeds
from rayfed.report.statistics import mean_sd
from rayfed.report.study import judge_values

SEEDS = drawn_seeds("small", "0123", 4, "judge")


@pytest.fixture
def entry() -> dict[str, Any]:
    values = {
        "a": {str(s): v for s, v in zip(SEEDS, (0.9, 0.88, 0.93, 0.88), strict=True)},
        "b": {str(s): v for s, v in zip(SEEDS, (0.8, 0.84, 0.86, 0.83), strict=True)},
    }
    claim = {"metric": "accuracy/global", "at": 3, "better": "a", "than": "b", "margin": 0.02}
    found = judge_values(claim, values["a"], values["b"], seeds=SEEDS)
    arms = {a: dict(zip(("mean", "sd"), mean_sd(list(v.values())), strict=True), n=4) for a, v in values.items()}
    kept = {k: v for k, v in found.items() if k != "differences"}
    result = {"about": "it is", "kind": "difference", **kept, "arms": arms, "values": values}
    return {"registered": "2026-11-30", "digest": "0123", "seeds": SEEDS, "results": [result]}


def test_what_follows_from_its_values_is_right(entry: dict[str, Any]) -> None:
    assert has_values(entry) and differences("small", entry) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"verdict": "worse"}, "verdict is better, published is worse"),
        ({"holds": False}, "holds is True, published is False"),
        ({"ci95": [0.0, 1.0]}, "ci95 is"),
        ({"p": 0.5}, "p is"),
        ({"mean_difference": 0.06}, "mean_difference is"),
    ],
)
def test_a_changed_number_is_found(entry: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    entry["results"][0] |= change
    assert any(f"small: it is: {sentence}" in p for p in differences("small", entry))


def test_changed_values_and_seeds_are_found(entry: dict[str, Any]) -> None:
    other = copy.deepcopy(entry)
    other["results"][0]["values"]["a"][str(SEEDS[0])] = 0.95
    assert any("the mean of a is" in p for p in differences("small", other))
    assert differences("small", {**entry, "digest": "4567"}) == [
        "small: its seeds are not those that follow from its settings"
    ]
    unstable = {**entry, "stability": {"b": {"unstable": True}}}
    assert differences("small", unstable) == ["small: it is: an arm is unstable, and the verdict does not say so"]
    unstable["results"][0] |= {"unstable": ["b"], "verdict": "unstable", "holds": None}
    assert differences("small", unstable) == [] and judged_again(entry, unstable["results"][0])["verdict"] == "unstable"


def test_shipped_verdicts_follow_from_their_published_values() -> None:
    wrong, without = claims.check()
    assert wrong == []
    assert not any(claims.shipped_verdicts()[n].get("registered") for n in without)
