"""When snapshots are due, and that what they replace is given up only once they last."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayfed import tree
from rayfed.engine import snapshotter
from rayfed.engine.pool import LocalPool
from rayfed.engine.runner import Runner
from rayfed.engine.snapshotter import LONGEST_S, SHARE, Snapshotter
from rayfed.errors import RunFailed
from rayfed.storage import run_folder, snapshots
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import toy
from tests.disk import AtTheLatest


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(snapshotter.time, "monotonic", lambda: now.s)
    return now


def made(every: Any) -> Any:
    folder: Any = SimpleNamespace(snapshot_s=0.0, snapshotted=0)
    states: Any = SimpleNamespace(snapshot_begun=lambda: None)
    return Snapshotter(folder, states, every)


def test_a_number_is_that_number_of_rounds(clock: SimpleNamespace) -> None:
    shots = made(3)
    for r in range(1, 10):
        clock.s += 1e6
        assert shots.due(r) == (r % 3 == 0)


def test_auto_goes_by_what_the_last_one_took(clock: SimpleNamespace) -> None:
    shots = made("auto")
    assert shots.due(1), "nothing is known yet, and nothing is there to go back to"
    shots.begun(1)
    clock.s += 1e6
    assert not shots.due(2), "one at a time"
    shots._under_way, shots._began, shots.folder.snapshot_s = 0, clock.s, 0.1
    clock.s += 0.99 * 0.1 / SHARE
    assert not shots.due(3)
    clock.s += 0.02 * 0.1 / SHARE
    assert shots.due(4)
    shots.folder.snapshot_s = 1e6
    assert not shots.due(5)
    clock.s += LONGEST_S
    assert shots.due(6), "at the latest"


def new(where: Path, **changes: Any) -> Runner:
    c = toy.config("scaffold", **changes)
    return Runner(c, toy.federation(c), LocalPool(), RunFolder.create(where, c.to_dict(), owner=Owner.me()))


def test_rounds_go_on_while_a_snapshot_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that takes long holds up the next one and the end, and no round between; kept segments are those in use."""
    changes: dict[str, Any] = {"rounds": 7, "storage": {"snapshot_every": 3, "keep": 1}}
    whole = toy.run_folder("scaffold", tmp_path / "whole", **changes)
    seal, go, rounds = snapshots.seal, threading.Event(), list[tuple[int, int]]()

    def slow(hidden: Path, round: int, fence: int) -> None:
        assert round != 3 or go.wait(60)
        seal(hidden, round, fence)

    def watch(status: dict[str, Any]) -> None:
        rounds.append((status["round"], runner.folder.snapshotted))
        if status["round"] == 5:
            go.set()

    monkeypatch.setattr(run_folder.snapshots, "seal", slow)
    runner = new(tmp_path / "slow", **changes)
    runner.progress = watch
    assert runner.execute() == ("done", 7)
    assert rounds[2:5] == [(3, 0), (4, 0), (5, 0)] and rounds[5][1] == 3 and rounds[-1] == (7, 7)
    rows = [{k: v for k, v in r.items() if not k.startswith(toy.VOLATILE)} for r in runner.folder.metrics().to_pylist()]
    assert rows == whole.rows and tree.same(runner.prepared.state, whole.state)
    (snapshot,) = (runner.folder.path / "snapshots").iterdir()
    there = {f.stem for f in (runner.folder.path / "segments").iterdir()}
    assert there == set(snapshots.read_segments(snapshot))


@pytest.mark.parametrize("every", [2, "auto"])
def test_what_goes_wrong_behind_the_rounds_ends_the_run_at_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: Any
) -> None:
    changes: dict[str, Any] = {"rounds": 6, "storage": {"snapshot_every": every}}
    whole = toy.run_folder("scaffold", tmp_path / "whole", **changes)
    with monkeypatch.context() as m:
        runner = new(tmp_path / "run", **changes)
        runner.folder.behind = AtTheLatest()

        def full(hidden: Path, round: int, fence: int) -> None:
            raise OSError(28, "No space left on device", "there")

        m.setattr(run_folder.snapshots, "seal", full)
        with pytest.raises(
            RunFailed, match=r"(?s)cannot write the snapshot of round \d: there: No space left.*rayfed resume"
        ):
            runner.execute()
        assert runner.prepared.reached < 6 and runner.status["status"] == "failed"
    again = toy.run_folder("scaffold", tmp_path / "run", resume=True, **changes)
    assert again.rows == whole.rows and tree.same(again.state, whole.state)
