"""Patience, and the models of the best round."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rayfed import tree
from rayfed.engine.best import BestModels, improves, is_over, kept
from rayfed.storage.tree_files import load_tree
from tests import toy
from tests.configs import the_problem


def test_patience_counts_evaluations_without_a_better_value() -> None:
    over = [is_over([0.1, 0.5, 0.4, 0.5, 0.45][:n], "accuracy/global", 3, 0.0) for n in range(1, 6)]
    assert over == [False, False, False, False, True]
    assert not is_over([3.0, 2.0, 1.0], "loss/global", 1, 0.0) and is_over([1.0, 2.0], "loss/global", 1, 0.0)
    assert is_over([0.5, 0.55], "accuracy/global", 1, 0.1) and not is_over([0.5, 0.65], "accuracy/global", 1, 0.1)
    slow = [0.5, 0.55, 0.62]  # small steps count together: 0.62 is more than 0.1 above the best that counted
    assert not is_over(slow, "accuracy/global", 2, 0.1)
    assert is_over([0.5, math.nan, math.nan], "accuracy/global", 2, 0.0) and not improves(
        math.nan, None, "accuracy/global"
    )


def ended(where: Path, **more: object) -> toy.Ran:
    stop = {"metric": "accuracy/global", "patience": 2, "min_change": 0.5}  # which no round after the first brings
    return toy.run_folder("fedavg", where, rounds=6, stop=stop, **more)


def test_a_run_ends_when_its_patience_does_and_a_resumed_one_with_it(tmp_path: Path) -> None:
    whole = ended(tmp_path / "whole")
    assert tuple(whole.ending) == ("done", 3)
    assert json.loads((whole.folder.path / "summary.json").read_text())["stopped_early"]
    ended(tmp_path / "part", stop_after=1)
    again = ended(tmp_path / "part", resume=True)
    assert tuple(again.ending) == ("done", 3) and [r["accuracy/global"] for r in again.rows] == [
        r["accuracy/global"] for r in whole.rows
    ]


def test_a_run_that_was_killed_after_its_last_round_adds_none(tmp_path: Path) -> None:
    ran = ended(tmp_path)
    (ran.folder.path / "summary.json").unlink()
    assert tuple(ended(tmp_path, resume=True).ending) == ("done", 3)


def test_the_best_rounds_models_are_kept(tmp_path: Path) -> None:
    """They are those that a run of so many rounds ends with."""
    ran = toy.run_folder(
        "fedavg", tmp_path / "whole", rounds=6, storage={"best": "loss/global"}, local={"optimizer": {"lr": 0.9}}
    )
    losses = [r["loss/global"] for r in ran.rows]
    best = losses.index(min(losses)) + 1
    ((found, path),) = kept(ran.folder.path).items()
    assert found == best
    short = toy.run_folder("fedavg", tmp_path / "short", rounds=best, local={"optimizer": {"lr": 0.9}})
    assert tree.same(
        tree.from_numpy(load_tree(path, "model")), tree.from_numpy(load_tree(short.folder.path / "model", "model"))
    )


def test_a_run_that_goes_back_forgets_what_came_after(tmp_path: Path) -> None:
    rows = [{"round": 1, "m/global": 0.5}, {"round": 2, "m/global": 0.4}]
    for r in (1, 4):
        (tmp_path / "best" / f"round-{r:06d}").mkdir(parents=True)
    keeper, saved = BestModels(tmp_path, "m/global", rows), []
    assert list(kept(tmp_path)) == [1]
    keeper.take(3, {"m/global": 0.45}, saved.append)
    keeper.take(4, {"m/global": 0.6}, lambda where: (saved.append(where), where.mkdir()))
    assert [p.name for p in saved] == ["round-000004"] and list(kept(tmp_path)) == [1, 4]
    keeper.committed()
    assert list(kept(tmp_path)) == [4]


@pytest.mark.parametrize("key", ["stop.patience=2", "stop.metric=accuracy/global"])
def test_a_metric_and_how_it_stops_belong_together(key: str) -> None:
    assert the_problem(key) == "stop: metric belongs together with at or patience; set it and one of them, or none"


def test_a_change_needs_patience() -> None:
    assert the_problem("stop={metric: accuracy/global, at: 0.9, min_change: 0.1}").startswith(
        "stop.min_change: 0.1 found, but nothing"
    )
