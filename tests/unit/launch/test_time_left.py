"""The time left of all that was asked for, on a clock that is set."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.launch.time_left import TimeLeft, time_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (61.4, "61 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (7500, "2 h 05 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_seconds_as_people_say_them(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def study(number: int, arm: str, round: int, eta: float | None, to_come: list[str]) -> dict[str, Any]:
    return {"runs": 4, "run_number": number, "arm": arm, "round": round, "rounds": 10, "eta_s": eta, "to_come": to_come}


def test_a_study_counts_the_runs_to_come() -> None:
    """a takes 20 s, b 40: after a and half of b, what is left is that half, another a and another b."""
    clock = Clock()
    left = TimeLeft(clock)
    assert left.of(study(1, "a", 0, None, ["b", "a", "b"])) == (0.0, None)
    clock.now = 10.0
    share, seconds = left.of(study(1, "a", 5, 10.0, ["b", "a", "b"]))
    assert share == pytest.approx(0.125) and seconds == pytest.approx(10 + 3 * 20)  # nothing is known of b yet
    clock.now = 20.0
    left.of(study(1, "a", 10, 0.0, ["b", "a", "b"]))
    left.of(study(2, "b", 0, None, ["a", "b"]))
    clock.now = 40.0
    share, seconds = left.of(study(2, "b", 5, 20.0, ["a", "b"]))
    assert share == pytest.approx(1.5 / 4) and seconds == pytest.approx(20 + 20 + 40)


def test_a_run_is_as_it_says() -> None:
    assert TimeLeft().of({"round": 3, "rounds": 12, "eta_s": 9.0}) == (0.25, 9.0)
    assert TimeLeft().of({"status": "starting"}) == (0.0, None)


def test_a_sweep_counts_its_trials() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    trial = {"trials": 4, "trials_done": 0, "trial_id": "a", "round": 2, "rounds": 10, "status": "running"}
    assert left.of(trial) == (pytest.approx(0.05), None)
    clock.now = 10.0
    share, seconds = left.of({**trial, "trials_done": 1, "round": 10, "status": "done"})
    assert share == pytest.approx(0.25) and seconds == pytest.approx(10 * 0.75 / 0.2)
    assert left.of({**trial, "trials_done": 1, "trial_id": "b", "round": 5})[0] == pytest.approx(0.375)
