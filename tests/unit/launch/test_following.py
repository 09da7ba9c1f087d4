"""Rows are told as they are committed: each once, in order, whatever is polled how often."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayfed.launch.following import Follower
from tests import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.run_folder("fedavg", tmp_path_factory.mktemp("f"), rounds=3, evaluate={"every": 2}).folder.path


def heard(follower_of: Any = None, stop_at: int = 0) -> tuple[Follower, list[tuple[str, Any]]]:
    told: list[tuple[str, Any]] = []

    def tell(event: str, path: Path, row: dict[str, Any]) -> bool:
        told.append((event, row.get("round", row.get("status"))))
        return event == "round" and row["round"] == stop_at

    return Follower(tell, follower_of), told


ALL = [("round", 1), ("round", 2), ("evaluate", 2), ("round", 3), ("evaluate", 3), ("end", "done")]


def test_rounds_that_no_status_spoke_of_are_told_too(run: Path) -> None:
    follower, told = heard()
    assert not follower({"round": 0, "path": str(run)}) and told == []
    assert not follower({"round": 3, "path": str(run)})
    follower({"round": 3, "path": str(run)})
    follower.close()
    follower.close()
    assert told == ALL


def test_the_next_run_ends_the_one_before(run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    follower, told = heard()
    for path in (run, other):
        follower({"round": 1, "path": str(path)})
    follower.close()
    assert told == ALL * 2


def test_what_a_resumed_run_had_is_not_told_again(run: Path, tmp_path: Path) -> None:
    part = shutil.copytree(run, tmp_path / "part")
    for snapshot in (part / "snapshots").glob("round-000003"):
        shutil.rmtree(snapshot)
    follower, told = heard(part)
    follower({"round": 3, "path": str(part)})
    assert told == [("round", 3), ("evaluate", 3)]


def test_whoever_is_told_may_stop_the_run(run: Path) -> None:
    follower, _ = heard(stop_at=2)
    assert follower({"round": 3, "path": str(run)}) and follower({"round": 3, "path": str(run)})


def test_statuses_before_there_is_a_folder(run: Path) -> None:
    follower, told = heard()
    assert not follower({"status": "starting"})
    follower.close()
    assert told == []
