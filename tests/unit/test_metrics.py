"""Metrics: sums that add up in any grouping, and what their names mean."""

from __future__ import annotations

import numpy as np

from rayfed.metrics import (
    Mean,
    ari,
    first_rounds,
    lower_is_better,
    mean_of_last,
    meaning,
    measured,
    outcome,
    rounds_to,
    scope,
    trailing_means,
)


def test_scope_by_hand():
    sums = {
        7: {"n": 10, "loss": 5.0, "accuracy": 8.0},
        9: {"n": 30, "loss": 60.0, "accuracy": 6.0},
        11: {"n": 0, "loss": 0.0, "accuracy": 0.0},
    }
    assert scope("personal", sums) == {
        "loss/personal": 1.25, "loss/personal_ex": 65 / 40, "accuracy/personal": 0.5, "accuracy/personal_ex": 14 / 40,
    }  # fmt: skip
    assert scope("unseen", {}) == scope("unseen", {1: {"n": 0, "loss": 0.0}}) == {}


def test_scope_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    sums = {
        c: {"n": float(rng.integers(1, 9)), "loss": float(rng.random() * 10.0 ** rng.integers(-8, 8))}
        for c in range(99)
    }
    turned = dict(sorted(sums.items(), key=lambda kv: kv[1]["loss"]))
    assert scope("x", sums) == scope("x", turned)


def test_means_add_up():
    parts = [Mean(3.0, 2.0), Mean(), Mean(5.0, 6.0)]
    assert (parts[0] + parts[1] + parts[2]).value == Mean.of(parts).value == 1.0
    assert Mean().value is None


def test_names():
    assert ari([0, 0, 1, 1], [5, 5, 2, 2]) == 1.0
    assert (
        lower_is_better("loss/global_ex")
        and lower_is_better("lora/gap")
        and lower_is_better("refit/loss")
        and lower_is_better("distill/student")
        and not lower_is_better("distill/accepted")
        and not lower_is_better("accuracy/global")
        and not lower_is_better(None)
    )
    assert "examples" in meaning("loss/personal_ex").over and meaning("loss/personal").over.startswith("clients")
    assert meaning("bytes/up").unit == "bytes per round" and meaning("own/thing") is None
    assert meaning("own/thing", {"own/thing": ("how far it is", "m")}) == ("how far it is", "m", "-")
    assert meaning("loss/global", {"loss/global": ("another", "m")}) != ("another", "m", "-")
    rows = [
        {"round": 1, "a": 1.0, "loss/x": None},
        {"round": 2, "a": 3.0, "loss/x": 2.0},
        {"round": 3, "a": 3.0, "loss/x": 5.0},
    ]
    assert outcome(rows) == {
        "a": {"final": 3.0, "best": 3.0, "best_round": 2}, "loss/x": {"final": 5.0, "best": 2.0, "best_round": 2},
    }  # fmt: skip


def test_rounds_to_a_value_are_the_first_that_reach_it() -> None:
    values = [(2, 0.5), (4, 0.81), (6, 0.79), (8, 0.9)]
    assert rounds_to("rounds to 0.8 of accuracy/global") == (0.8, "accuracy/global")
    assert rounds_to("accuracy/global") is None and rounds_to("rounds to much of accuracy/global") is None
    assert first_rounds(values, 0.8) == [(2, 2), (4, 4), (6, 4), (8, 4)]
    assert first_rounds(values, 0.95) == [(2, 2), (4, 4), (6, 6), (8, 8)]
    assert first_rounds(values, 0.5, lower=True) == [(2, 2), (4, 2), (6, 2), (8, 2)]
    assert lower_is_better("rounds to 0.8 of accuracy/global")


def test_means_of_the_last_rounds_are_of_what_was_measured_in_them() -> None:
    assert mean_of_last("mean of the last 4 of loss/global") == (4, "loss/global")
    assert mean_of_last("loss/global") is None and mean_of_last("mean of the last few of loss/global") is None
    assert trailing_means([(2, 1.0), (4, 2.0), (6, 6.0), (8, 4.0)], 4) == [(2, 1.0), (4, 1.5), (6, 4.0), (8, 5.0)]
    assert lower_is_better("mean of the last 4 of loss/global") and not lower_is_better(
        "mean of the last 4 of accuracy/global"
    )
    found = [measured(f"{what} of loss/global") for what in ("rounds to 0.5", "mean of the last 3")]
    assert found == ["loss/global"] * 2 and measured("loss/global") == "loss/global"
