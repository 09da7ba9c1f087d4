"""Body, period and ratio, from made-up times."""

from __future__ import annotations

from typing import Any

import figures
import pytest
from hypothesis import given
from hypothesis import strategies as st


def event(kind: str, second: float) -> dict[str, Any]:
    return {"kind": kind, "time": f"2026-01-01T00:00:{second:06.3f}Z"}


def test_a_period_has_all_that_a_body_has_not() -> None:
    """Three rounds of 1, 2 and 6 s with a second between them, an evaluation of 3 s after the last."""
    times = {"rounds": [[100, 101], [102, 104], [105, 111]], "finished": 114.0, "evaluations": [3.0], "accuracy": [0.5]}
    got = figures.of_side(times).figures(90.0)
    assert got == {"body_s": 2, "period_s": 14 / 3, "evaluate_s": 3.0, "first_round_s": 11, "rounds": 3}


def test_rayfeds_rounds_begin_once_the_executor_is_chosen_and_end_when_the_run_is_finished() -> None:
    rows = [{"time/round": 0.5}, {"time/round": 0.25}, {"time/round": 1.0, "time/evaluate": 2.0}]
    events = [event("created", 1), event("executor", 10), event("replay", 11), event("finished", 16)]
    span = figures.of_run(rows, events)
    got = span.figures(span.begin - 10)
    assert got["period_s"] == pytest.approx(2.0) and got["body_s"] == 0.5 and got["evaluate_s"] == 2.0
    assert got["first_round_s"] == pytest.approx(10.5)


def test_the_first_choice_of_an_executor_counts_and_without_one_the_runs_begin() -> None:
    rows = [{"time/round": 1.0}, {"time/round": 1.0}]
    fallen_back = [event("created", 1), event("executor", 2), event("executor", 7), event("finished", 12)]
    assert figures.of_run(rows, fallen_back).figures(0)["period_s"] == pytest.approx(5.0)
    assert figures.of_run(rows, [fallen_back[0], fallen_back[-1]]).figures(0)["period_s"] == pytest.approx(5.5)


def test_repetitions_have_a_median_and_a_range_and_what_a_side_has_not_is_left_out() -> None:
    runs = [{"body_s": b, "rounds": 4} for b in (3.0, 1.0, 2.0)]
    assert figures.summary(runs) == {"body_s": {"median": 2.0, "min": 1.0, "max": 3.0}, "repeats": 3, "rounds": 4}


def test_a_ratio_is_of_like_to_like_and_none_where_one_was_not_measured() -> None:
    ours, theirs = {"period_s": {"median": 2.0}, "body_s": {"median": 1.0}}, {"period_s": {"median": 5.0}}
    assert figures.ratio(theirs, ours) == 2.5
    assert figures.ratio(ours, ours, "period_s", "body_s") == 2.0
    assert figures.ratio(theirs, ours, "body_s") is None
    assert figures.ratio({"round_s": {"median": 3.0}}, ours) == 1.5  # an older sitting


@given(
    spans=st.lists(st.tuples(st.floats(1e-4, 10), st.floats(0, 10)), min_size=1, max_size=50),
    after=st.floats(0, 10),
)
def test_a_period_is_at_least_the_mean_of_the_bodies(spans: list[tuple[float, float]], after: float) -> None:
    now, rounds = 1e6, []
    for inside, between in spans:
        rounds.append([now, now + inside])
        now += inside + between
    got = figures.of_side({"rounds": rounds, "finished": now + after, "evaluations": []}).figures(1e6)
    assert got["period_s"] >= sum(inside for inside, _ in spans) / len(spans) - 1e-6
    assert "evaluate_s" not in got
