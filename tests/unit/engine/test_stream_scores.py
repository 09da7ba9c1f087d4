"""Accuracy per task, forgetting and backward transfer: by hand, and of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed.engine import stream_scores
from rayfed.metrics import MEASURES, lower_is_better, meaning
from tests import toy

ACCURACY, LOSS = MEASURES["accuracy"], MEASURES["loss"]


def sums(accuracy: float, loss: float = 0.0) -> dict[int, dict[str, float]]:
    """Of two clients, whose means have this mean."""
    return {
        3: {"n": 10, "accuracy": 10 * accuracy - 1, "loss": 10 * loss},
        5: {"n": 20, "accuracy": 20 * accuracy + 2, "loss": 20 * loss},
    }


def test_by_hand() -> None:
    """Task 1: 0.8 at its end, 0.9 at the end of task 2 (the best), 0.5 now; task 2: 0.7, now 0.75."""
    kept: Any = {}
    first, kept = stream_scores.row([ACCURACY, LOSS], [sums(0.8, 1.0)], kept, True)
    assert (
        first["accuracy/task-1"] == first["accuracy/tasks"] == pytest.approx(0.8) and "accuracy/forgetting" not in first
    )
    assert first["accuracy/task-1_ex"] == pytest.approx((10 * 0.8 + 20 * 0.8 + 1) / 30)
    second, kept = stream_scores.row([ACCURACY, LOSS], [sums(0.9, 0.5), sums(0.7, 1.2)], kept, True)
    assert second["accuracy/forgetting"] == pytest.approx(-0.1) and second["accuracy/backward"] == pytest.approx(0.1)
    third, again = stream_scores.row([ACCURACY, LOSS], [sums(0.5, 2.0), sums(0.75, 1.0), sums(0.6, 1.5)], kept, False)
    assert third["accuracy/tasks"] == pytest.approx((0.5 + 0.75 + 0.6) / 3)
    assert third["accuracy/backward"] == pytest.approx((-0.3 + 0.05) / 2)
    assert third["accuracy/forgetting"] == pytest.approx((0.4 - 0.05) / 2)
    assert third["loss/backward"] == pytest.approx((1.0 - 0.2) / 2) and third["loss/forgetting"] == pytest.approx(
        (1.5 - 0.2) / 2
    )
    assert again["best"]["accuracy"].tolist() == pytest.approx([0.9, 0.7])


def test_names_have_a_meaning_and_a_direction() -> None:
    assert lower_is_better("accuracy/forgetting") and lower_is_better("loss/forgetting")
    assert (
        not lower_is_better("accuracy/backward")
        and lower_is_better("loss/backward")
        and not lower_is_better("accuracy/task-2")
    )
    said = meaning("accuracy/task-2")
    assert said is not None and "task 2" in said.over and meaning("accuracy/task-x") is None


@pytest.mark.parametrize("method", ["fedavg", "local_only"])
def test_a_run_measures_each_task_so_far(method: str, tmp_path: Path) -> None:
    """One model for all, and one for each client; every evaluation, and the ends of tasks whatever `evaluate.every` is."""
    changes = {
        "federation": {"groups": {"kind": "none"}, "stream": {"kind": "permuted", "every": 2, "tasks": 2}},
        "evaluate": {"every": 3},
    }
    run = toy.run_folder(method, tmp_path / "whole", executor="vmap", rounds=4, **changes)
    rows = {r["round"]: r for r in run.rows}
    assert [r for r in rows if rows[r]["accuracy/tasks"] is not None] == [2, 3, 4]
    assert rows[2]["accuracy/task-1"] == rows[2]["accuracy/personal"] and rows[2].get("accuracy/task-2") is None
    for r in (3, 4):
        assert rows[r]["accuracy/task-2"] == rows[r]["accuracy/personal"] != rows[r]["accuracy/task-1"]
        assert rows[r]["accuracy/backward"] == pytest.approx(rows[r]["accuracy/task-1"] - rows[2]["accuracy/task-1"])
    stopped = toy.run_folder(method, tmp_path / "part", executor="vmap", rounds=4, stop_after=3, **changes)
    assert stopped.ending.round == 3
    assert toy.run_folder(method, tmp_path / "part", executor="vmap", rounds=4, resume=True, **changes).rows == run.rows
