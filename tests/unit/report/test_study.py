"""Verdicts on claims."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rayfed.report.study import judge


class FakeRun:
    def __init__(self, seed, value):
        self.seed, self.summary, self.value, self.path = seed, {"status": "done"}, value, Path("none")

    def series(self, metric):
        return [(5, self.value)]

    def final(self, metric):
        return self.value


@pytest.mark.parametrize(
    ("better", "than", "metric", "margin", "verdict", "holds"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "better", True),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.2, "better", False),  # better, but not by so much
        ([0.9, 0.7, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "undecided", None),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "loss/global", 0.0, "worse", False),
        ([0.5, 0.5], [0.5, 0.5], "accuracy/global", 0.0, "equal within 0", None),
        ([0.9], [0.8], "accuracy/global", 0.0, "undecided", None),
        ([0.9, 0.9], [], "accuracy/global", 0.0, "undecided", None),
        ([0.9, math.nan], [0.8, 0.8], "accuracy/global", 0.0, "undecided", None),
        ([0.79, 0.80, 0.80], [0.8, 0.8, 0.81], "accuracy/global", -0.1, "equal within 0.1", True),
        (
            [0.79, 0.80, 0.80],
            [0.8, 0.8, 0.81],
            "accuracy/global",
            -0.02,
            "equal within 0.02",
            None,
        ),  # at 5 %, not at 2.5 %
        ([0.801, 0.799, 0.81], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "equal within 0.01", None),
        ([0.801, 0.799, 0.81], [0.8, 0.8, 0.81], "loss/global", 0.0, "undecided", None),  # no bound is known for losses
        ([0.70, 0.71, 0.71], [0.8, 0.8, 0.81], "accuracy/global", -0.05, "worse", False),
        (
            [0.5, 0.5],
            [0.75, 0.75],
            "accuracy/global",
            -0.25,
            "worse",
            True,
        ),  # the margin itself is not worse than the margin
    ],
)
def test_verdicts(better, than, metric, margin, verdict, holds):
    arms = {"a": [FakeRun(s, v) for s, v in enumerate(better)], "b": [FakeRun(s, v) for s, v in enumerate(than)]}
    claim = {"metric": metric, "at": 5, "better": "a", "than": "b", "margin": margin}
    for at in (5, None):
        found = judge({**claim, "at": at}, arms)
        assert (found["verdict"], found["holds"]) == (verdict, holds)
    late = judge({**claim, "at": 6}, arms)
    assert (late["n"], late["verdict"], late["holds"]) == (0, "undecided", None)
    planned = judge(claim, arms, seeds=[0, 1, 2, 3])
    assert (planned["verdict"], planned["holds"]) == ("incomplete", None)


def test_the_numbers_behind_a_verdict():
    from scipy import stats

    a, b = [0.9, 0.88, 0.93, 0.88], [0.8, 0.84, 0.86, 0.83]
    arms = {"a": [FakeRun(s, v) for s, v in enumerate(a)], "b": [FakeRun(s, v) for s, v in enumerate(b)]}
    found = judge({"metric": "accuracy/global", "at": 5, "better": "a", "than": "b"}, arms)
    test = stats.ttest_rel(a, b)
    assert found["p"] == pytest.approx(test.pvalue) and found["ci95"] == pytest.approx(
        list(test.confidence_interval(0.95))
    )
    assert found["effect"] == pytest.approx(found["mean_difference"] / found["sd"]) and found["verdict"] == "better"
    strict = judge({"metric": "accuracy/global", "at": 5, "better": "a", "than": "b"}, arms, alpha=0.001)
    assert strict["verdict"] == "undecided" and strict["ci95"] == found["ci95"] and strict["alpha"] == 0.001
