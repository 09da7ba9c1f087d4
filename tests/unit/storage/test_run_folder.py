"""The run folder under crashes, full disks and kills: a round is committed or not there at all."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rayfed.errors import ConfigError, RunFailed
from rayfed.storage import round_log, snapshots
from rayfed.storage.run_folder import RunFolder, read_metrics
from rayfed.storage.versions import versions
from tests.conftest import ROOT
from tests.disk import ORDERS
from tests.unit.storage.writer import ME, check_run, make_run, step


def test_no_run_folder_is_refused(tmp_path):
    folder = make_run(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path, owner=ME)
    with pytest.raises(ConfigError, match="did you mean"):
        RunFolder.open(Path(str(folder.path) + "x"), owner=ME)


# -- crashes -----------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine stops: no handler for ordinary errors sees it."""


STEPS = [(os, n) for n in ("replace", "rename", "fsync", "write", "ftruncate", "truncate", "unlink", "rmdir", "mkdir")]


def failing(monkeypatch, k, error):
    """The k-th call that changes the disk raises, and so does every later one if the machine crashed."""
    count = 0

    def wrap(call):
        def f(*args, **kwargs):
            nonlocal count
            count += 1
            if count == k or (count > k and isinstance(error, Crash)):
                raise error
            return call(*args, **kwargs)

        return f

    for where, name in STEPS:
        monkeypatch.setattr(where, name, wrap(getattr(where, name)))
    return lambda: count


def every_step(tmp_path, monkeypatch, error, until, act, after, order="at once"):
    """`act(folder)` with a failure at its first, second, ... disk operation until none is left; returns how many. order: of what is
    done behind the rounds."""
    for k in range(1, 400):
        folder = make_run(tmp_path / str(k), until=until)
        folder.behind = ORDERS[order]()
        raised = None
        with monkeypatch.context() as m:
            calls = failing(m, k, error)
            try:
                act(folder)
            except (Crash, RunFailed) as e:
                raised = e
            total = calls()
        after(folder.path, raised)
        if total < k:
            return k - 1
    raise AssertionError("no end")


def play(folder):
    for r in range(6, 13):
        step(folder, r)
    folder.wait()


@pytest.mark.parametrize("order", ORDERS)
def test_crash_at_every_step_of_a_commit(tmp_path, monkeypatch, order):
    seen = set()

    def after(path, raised):
        folder, last = check_run(path, least=5)
        assert last in (5, 10)
        seen.add(last)
        for r in range(last + 1, 16):
            step(folder, r)
        folder.wait()
        check_run(path, least=15)

    assert every_step(tmp_path, monkeypatch, Crash(), 5, play, after, order) > 20
    assert seen == {5, 10}


def test_crash_at_every_step_of_finish(tmp_path, monkeypatch):
    def after(path, raised):
        ended = (path / "summary.json").exists()
        assert len(round_log.read(path)) == 8
        assert not ended or len(os.listdir(path / "clients")) == 1
        check_run(path, least=5)

    assert every_step(tmp_path, monkeypatch, Crash(), 8, lambda f: f.finish("stopped", {}), after) > 10


@pytest.mark.parametrize("finished", [True, False])
def test_crash_at_every_step_of_rewind(tmp_path, monkeypatch, finished):
    def act(folder):
        if finished:
            folder.finish("stopped", {})
        folder.rewind()

    def after(path, raised):
        check_run(path, least=5)

    assert every_step(tmp_path, monkeypatch, Crash(), 8, act, after) > 3


@pytest.mark.parametrize("order", ORDERS)
def test_full_disk_at_every_step(tmp_path, monkeypatch, order):
    """ENOSPC once, at any step: a sentence, and the same process may go on afterwards."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")
    seen = 0

    def after(path, raised):
        nonlocal seen
        if raised is not None:
            seen += 1
            text = str(raised)
            assert isinstance(raised, RunFailed)
            assert re.search(r"cannot write (the snapshot of )?round \d", text) and "some/file" in text
            assert "No space left on device" in text and "MB free" in text and "stay valid" in text
        done = max(round_log.read(path))
        assert list(round_log.read(path)) == list(range(1, done + 1))
        folder = RunFolder.attach(path, 1)
        for r in range(done + 1, 17):
            step(folder, r)
        folder.wait()
        check_run(path, least=15)

    every_step(tmp_path, monkeypatch, full, 5, play, after, order)
    assert seen > 20


def test_a_snapshot_that_fails_leaves_no_row(tmp_path):
    folder = make_run(tmp_path, until=5)

    def broken(where):
        (where / "half").write_text("x")
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        folder.commit(6, {"loss/global": 1.0}, None, broken)
    assert folder.metrics().num_rows == 5
    assert os.listdir(folder.path / "snapshots") == ["round-000005"]
    step(folder, 6)


def test_rows_outlive_the_machine_before_a_snapshot_of_them_does(tmp_path, monkeypatch):
    """Without a snapshot a row is not synced: a run goes on from its last snapshot, whatever came after it."""
    folder = make_run(tmp_path, until=4)
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(fd):
        done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def replaced(a, b, **kwargs):
        done.append(Path(b).name)
        replace(a, b, **kwargs)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    rows = f"rows-{folder.fence}.jsonl"
    step(folder, 5)
    folder.wait()
    assert done.index(rows) < done.index("round-000005")
    evaluated = "clients-000005-1.parquet"
    assert done.index(evaluated) < done.index("parts") < done.index("round-000005"), "client rows too"
    done.clear()
    step(folder, 6)
    assert done == []
    folder = make_run(tmp_path / "another")
    done.clear()
    step(folder, 1)
    assert done == [folder.path.name, "parts"], "new names are made to last"


KILLED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from rayfed.storage import round_log
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import step
folder = RunFolder.attach(Path({path!r}), {fence})
last = max(round_log.read(folder.path), default=0)
for r in range(last + 1, 10**6):
    step(folder, r, every=3)
    if r == last + 3:
        print("go", flush=True)
"""


def test_kill_minus_nine_at_any_moment(tmp_path):
    path = make_run(tmp_path).path
    folder, last, reached = RunFolder.open(path, owner=ME), 0, 0
    rng = random.Random(0)
    for _ in range(10):
        code = KILLED.format(root=str(ROOT), path=str(path), fence=folder.fence)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"go\n"
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        present = max(round_log.read(path), default=0)
        folder, last = check_run(path, least=reached)
        assert last % 3 == 0 and present - 6 <= last <= present  # rows may stand whose snapshot does not yet
        reached = last
    assert reached >= 30


# -- content -----------------------------------------------------------------------------------------------------------


def test_rewind_without_a_snapshot_drops_all(tmp_path):
    folder = make_run(tmp_path)
    assert folder.rewind() == (0, None)
    for r in (1, 2):
        step(folder, r)
    assert folder.rewind() == (0, None)
    assert folder.metrics().num_rows == 0


def test_rewind_skips_a_damaged_snapshot_and_records_it(tmp_path):
    folder = make_run(tmp_path, until=12)
    (folder.path / "snapshots" / "round-000010" / "clients.json").write_text("{}")
    folder, last = check_run(folder.path)
    assert last == 5
    events = [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]
    (skipped,) = [e for e in events if e["kind"] == "set aside"]
    assert skipped["note"] == (
        "snapshots/round-000010: clients.json: it has 2 bytes instead of 13; set aside as .damaged-round-000010"
    )
    for r in range(6, 11):
        step(folder, r)
    assert folder.rewind()[0] == 10


def test_rewind_skips_a_snapshot_whose_rows_are_lost(tmp_path):
    folder = make_run(tmp_path, until=10)
    part = folder.path / "parts" / "rows-1.jsonl"
    part.write_bytes(b"".join(line for line in part.read_bytes().splitlines(True) if b'"round": 7,' not in line))
    _, last = check_run(folder.path)
    assert last == 5
    assert "the row of round 7 is lost" in (folder.path / "events.jsonl").read_text()


def test_keep_newest_snapshots(tmp_path):
    folder = make_run(tmp_path, until=20)
    assert [r for r, _ in snapshots.list_snapshots(folder.path / "snapshots")] == [20, 15]


def test_rounds_follow_each_other(tmp_path):
    folder = make_run(tmp_path, until=3)
    for r in (3, 5, 1):
        with pytest.raises(ValueError, match="cannot follow round 3"):
            step(folder, r)
    with pytest.raises(TypeError, match="metric 'name' must be a number"):
        folder.commit(4, {"name": "x"}, None, None)
    assert folder.metrics().num_rows == 3


def test_finish_compacts_and_a_later_resume_merges(tmp_path):
    import pyarrow.parquet as pq

    folder = make_run(tmp_path, until=10)
    folder.finish("done", {"rounds": 10, "wall_s": 1.5, "notes": ["n"]})
    assert not (folder.path / "parts").exists()
    assert sorted(os.listdir(folder.path / "clients")) == ["round-000005.parquet", "round-000010.parquet"]
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "done" and summary["method"] == "fedavg" and summary["executor"] == "loop"
    assert summary["metrics"]["accuracy/global"] == {"final": 0.1, "best": 0.1, "best_round": 10}
    assert summary["metrics"]["bytes/up"] == {"final": 1000, "best": 100, "best_round": 1}
    assert summary["notes"] == ["n"] and set(summary["versions"]) == set(versions())

    folder = RunFolder.open(folder.path, owner=ME)
    assert folder.rewind()[0] == 10
    assert not (folder.path / "summary.json").exists()
    for r in range(11, 18):
        step(folder, r)
    assert [row["round"] for row in folder.metrics().to_pylist()] == list(range(1, 18))
    assert folder.clients()[0]["round"] == 15 and folder.clients(5)[0]["round"] == 5 and folder.clients(6) == []
    folder.finish("done", {})
    table = pq.read_table(folder.path / "metrics.parquet")
    assert table["round"].to_pylist() == list(range(1, 18)) == read_metrics(folder.path)["round"].to_pylist()
    assert len(os.listdir(folder.path / "clients")) == 3

    folder = RunFolder.open(folder.path, owner=ME)
    assert folder.rewind()[0] == 15  # the end of a run need not be a snapshot
    assert pq.read_table(folder.path / "metrics.parquet").num_rows == 15


def test_state_and_events(tmp_path):
    folder = make_run(tmp_path)
    folder.state(status="running", round=2, rounds=20, metrics={"a": float("nan"), "b": np.float64(1)})
    state = json.loads((folder.path / "state.json").read_text())
    assert state["run"] == folder.run_id and state["pid"] == os.getpid() and state["metrics"] == {"a": None, "b": 1.0}
    with open(folder.path / "events.jsonl", "ab") as f:
        f.write(b'{"torn')
    folder.event("x", why="y", where=Path("z"))
    assert json.loads((folder.path / "events.jsonl").read_text().splitlines()[-1])["where"] == "z"


def test_a_commit_opens_the_same_files_in_every_round(tmp_path, monkeypatch):
    """Neither the rows nor the config are read again: what a round costs does not grow with their number."""
    folder = make_run(tmp_path)
    opened: list[str] = []

    def counting(call):
        def f(file, *args, **kwargs):
            opened.append(Path(file).name)
            return call(file, *args, **kwargs)

        return f

    row = {f"metric/{i}": float(i) for i in range(30)}
    folder.commit(1, row)
    monkeypatch.setattr(os, "open", counting(os.open))
    monkeypatch.setattr("builtins.open", counting(open))
    for r in range(2, 8):
        folder.commit(r, row)
    assert opened == []
