"""Verdicts on claims."""

from __future__ import annotations

import math

import pytest

from rayfed.report.study import judge


class FakeRun:
    def __init__(self, seed, value):
        self.seed, self.summary, self.value = seed, {"status": "done"}, value

    def series(self, metric):
        return [(5, self.value)]

    def final(self, metric):
        return self.value


@pytest.mark.parametrize(
    ("better", "than", "metric", "margin", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "holds"),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.2, "does not hold here"),
        ([0.9, 0.7, 0.92], [0.8, 0.8, 0.81], "accuracy/global", 0.0, "undecided"),
        ([0.9, 0.91, 0.92], [0.8, 0.8, 0.81], "loss/global", 0.0, "does not hold here"),
        ([0.5, 0.5], [0.5, 0.5], "accuracy/global", 0.0, "does not hold here"),
        ([0.9], [0.8], "accuracy/global", 0.0, "undecided"),
        ([0.9, 0.9], [], "accuracy/global", 0.0, "undecided"),
        ([0.9, math.nan], [0.8, 0.8], "accuracy/global", 0.0, "undecided"),
        ([0.79, 0.80, 0.80], [0.8, 0.8, 0.81], "accuracy/global", -0.1, "holds"),
        ([0.79, 0.80, 0.80], [0.8, 0.8, 0.81], "accuracy/global", -0.02, "undecided"),
        ([0.70, 0.71, 0.71], [0.8, 0.8, 0.81], "accuracy/global", -0.05, "does not hold here"),
        ([0.5, 0.5], [0.75, 0.75], "accuracy/global", -0.25, "holds"),  # the margin itself is not worse than the margin
    ],
)
def test_verdicts(better, than, metric, margin, verdict):
    arms = {"a": [FakeRun(s, v) for s, v in enumerate(better)], "b": [FakeRun(s, v) for s, v in enumerate(than)]}
    claim = {"metric": metric, "at": 5, "better": "a", "than": "b", "margin": margin}
    assert judge(claim, arms)["verdict"] == verdict
    assert judge({**claim, "at": None}, arms)["verdict"] == verdict
    assert judge({**claim, "at": 6}, arms) == {**judge({**claim, "at": 6}, arms), "n": 0, "verdict": "undecided"}
