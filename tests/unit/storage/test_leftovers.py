"""What `rayfed clean` may delete, and what it must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfed.storage import cache, leftovers, temporary
from rayfed.storage.leftovers import delete, find_leftovers
from tests import toy


def failed_early(runs: Path, name: str) -> Path:
    """A run that failed before its first round."""
    path = runs / name
    made = toy.run_folder("fedavg", runs, rounds=1).folder.path
    made.rename(path)
    for file in ("summary.json", "metrics.parquet"):
        (path / file).unlink(missing_ok=True)
    (path / "state.json").write_text(json.dumps({"status": "failed", "round": 0}))
    return path


def test_runs_without_a_round_and_nothing_else(tmp_path: Path) -> None:
    done = toy.run_folder("fedavg", tmp_path, rounds=1).folder.path
    empty = failed_early(tmp_path, "empty-20261121-153000-ab12")
    behind = failed_early(tmp_path, "behind-20261121-153000-ab13")  # its live status is older than its rows
    (behind / "metrics.parquet").write_bytes((done / "metrics.parquet").read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    (found,) = find_leftovers(tmp_path)
    assert found.path == empty and found.bytes > 0 and "before its first round (failed)" in found.what
    assert (
        delete([found]) == []
        and not empty.exists()
        and done.exists()
        and behind.exists()
        and (tmp_path / "mine").exists()
    )
    assert find_leftovers(tmp_path) == [] and find_leftovers(tmp_path / "nowhere") == []


def test_a_run_at_work_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = failed_early(tmp_path, "empty-20261121-153000-ab12")
    for word in ("starting", "running", "running (owner on elsewhere, not checked)", "done"):
        monkeypatch.setattr("rayfed.storage.listing.status", lambda path, w=word: w)
        assert find_leftovers(tmp_path) == [], word
    assert empty.exists()


def test_what_killed_processes_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    mine = [temporary.temporary(tmp_path, "new"), temporary.temporary(tmp_path / "study", "clone")]
    for path in mine:
        path.mkdir()
    assert find_leftovers(tmp_path) == []  # this process may still need them
    monkeypatch.setattr(temporary, "process_start", lambda pid: None)
    assert [f.path for f in find_leftovers(tmp_path)] == mine


def test_the_cache_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "cache"))
    for name in (*leftovers.CACHED, "models", "runs"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "file").write_bytes(b"1234")
    assert find_leftovers(tmp_path) == []
    found = find_leftovers(tmp_path, cache=True)
    assert [(f.path.name, f.bytes) for f in found] == [(n, 4) for n in leftovers.CACHED]
    delete(found)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["models", "runs"]
