"""The run folder under crashes, full disks, kills and second writers."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rayfed.errors import ConfigError, Fenced, RunFailed
from rayfed.storage import round_log, snapshots
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder, read_metrics
from rayfed.storage.snapshots import load_tree, save_tree

ME = Owner.me()
CONFIG = {
    "name": "toy",
    "seed": 3,
    "rounds": 20,
    "method": {"name": "fedavg"},
    "resources": {"executor": "loop"},
    "storage": {"path": "runs", "snapshot_every": 5, "keep": 2},
}


def fill(r):
    def write(where):
        save_tree(where, "server", {"x": np.full(64, float(r))})
        (where / "clients.json").write_text(json.dumps({"round": r}))

    return write


def step(folder, r, every=5):
    row = {"loss/global": 1.0 / r, "bytes/up": 100 * r, "accuracy/global": r / 100 if r % every == 0 else None}
    clients = [{"client": c, "accuracy": r / 100} for c in range(3)] if r % every == 0 else None
    folder.commit(r, row, clients, fill(r) if r % every == 0 else None)


def made(tmp_path, until=0, **changes):
    folder = RunFolder.create(tmp_path, {**CONFIG, **changes}, owner=ME)
    for r in range(1, until + 1):
        step(folder, r)
    return folder


def check(path, least=0, every=5):
    """A new owner rewinds and finds rows 1..r once each, with their rounds' values, and the snapshot of round r."""
    folder = RunFolder.open(path, owner=ME)
    last, where = folder.rewind()
    assert last >= least
    found = folder.metrics().to_pylist()
    assert [row["round"] for row in found] == list(range(1, last + 1))
    assert all(row["loss/global"] == 1.0 / row["round"] and row["bytes/up"] == 100 * row["round"] for row in found)
    assert (where is None) == (last == 0)
    if where:
        assert snapshots.damage(where, last) is None
        assert (load_tree(where, "server")["x"] == last).all()
        assert [c["accuracy"] for c in folder.clients(last)] == [last / 100] * 3
    evaluated = [p for p in (path / "parts").glob("clients-*")] if (path / "parts").exists() else []
    assert all(int(p.stem.split("-")[1]) <= last for p in evaluated)
    hidden = [p.name for p in path.rglob(".*") if p.name != ".lock" and not p.name.startswith(".damaged")]
    assert not hidden
    return folder, last


# -- beginning ---------------------------------------------------------------------------------------------------------


def test_create_makes_one_folder_at_once(tmp_path):
    folder = made(tmp_path / "deep" / "runs")
    assert os.listdir(tmp_path / "deep" / "runs") == [folder.path.name]
    assert folder.path.name.startswith("toy-2") and folder.run_id == folder.path.name
    assert folder.config == CONFIG
    assert made(tmp_path / "deep" / "runs").path != folder.path


def test_exact_folder_for_an_arm(tmp_path):
    where = tmp_path / "study" / "fedavg" / "seed-0"
    folder = RunFolder.create(where, CONFIG, owner=ME, exact=True)
    other = RunFolder.create(where.parent / "seed-1", CONFIG, owner=ME, exact=True)
    assert folder.path == where and folder.run_id != other.run_id
    with pytest.raises(ConfigError, match="exists already"):
        RunFolder.create(where, CONFIG, owner=ME, exact=True)


def test_unwritable_place_is_a_config_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage.path.*file.*--out"):
        RunFolder.create(tmp_path / "file" / "runs", CONFIG, owner=ME)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / "x").mkdir()
    with monkeypatch.context() as m, pytest.raises(ConfigError, match="Permission denied"):
        m.setattr(os, "mkdir", denied)
        RunFolder.create(tmp_path / "x", CONFIG, owner=ME)
    assert os.listdir(tmp_path / "x") == []


def test_no_run_folder_is_told(tmp_path):
    folder = made(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        RunFolder.open(tmp_path, owner=ME)
    with pytest.raises(ConfigError, match="did you mean"):
        RunFolder.open(Path(str(folder.path) + "x"), owner=ME)


# -- one writer --------------------------------------------------------------------------------------------------------


def test_old_writer_is_fenced_and_writes_nothing(tmp_path):
    old = made(tmp_path, until=6)
    new = RunFolder.open(old.path, owner=ME)
    assert new.fence == old.fence + 1

    def content():
        return {p: p.read_bytes() for p in old.path.rglob("*") if p.is_file()}

    before = content()
    for write in (
        lambda: step(old, 7),
        lambda: old.rewind(),
        lambda: old.state(status="running"),
        lambda: old.event("x"),
        lambda: old.finish("done", {}),
        lambda: old.set_config({}),
        lambda: RunFolder.attach(old.path, old.fence),
    ):
        with pytest.raises(Fenced, match="taken over"):
            write()
        assert content() == before
    old.close()
    assert content() == before
    assert new.rewind()[0] == 5
    step(RunFolder.attach(new.path, new.fence), 6)
    assert new.metrics().num_rows == 6


def other_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    import psutil

    return process, Owner(ME.host, process.pid, psutil.Process(process.pid).create_time())


def test_a_living_owner_is_not_robbed(tmp_path):
    process, owner = other_process()
    try:
        folder = RunFolder.create(tmp_path, CONFIG, owner=owner)
        assert owner.alive()
        with pytest.raises(ConfigError, match=f"process {process.pid} .*still runs"):
            RunFolder.open(folder.path, owner=ME)
        assert RunFolder.attach(folder.path, folder.fence).fence == 1
    finally:
        process.kill()
    time.sleep(0.2)
    assert not owner.alive()  # a zombie is dead
    process.wait()
    assert not owner.alive()
    assert RunFolder.open(folder.path, owner=ME).fence == 2


def test_a_reused_pid_is_somebody_else(tmp_path):
    assert ME.alive()
    assert not dataclasses.replace(ME, start=ME.start - 100).alive()


def test_an_owner_elsewhere_needs_a_word(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, CONFIG, owner=Owner("far-away", 12, 0.0))
    monkeypatch.delenv("RAYFED_TAKE_OVER", raising=False)
    with pytest.raises(ConfigError, match=r"process 12 on far-away.*RAYFED_TAKE_OVER=1"):
        RunFolder.open(folder.path, owner=ME)
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    assert RunFolder.open(folder.path, owner=ME).fence == 2


def test_two_writers_at_once_never_mix(tmp_path):
    """Threads take the run over from each other while they commit; every row is there once."""
    path = made(tmp_path).path
    stop = time.monotonic() + 2.0
    failures: list[BaseException] = []

    def writer(seed):
        rng = random.Random(seed)
        try:
            while time.monotonic() < stop:
                folder = RunFolder.open(path, owner=ME)
                try:
                    last, _ = folder.rewind()
                    for r in range(last + 1, last + 1 + rng.randrange(12)):
                        step(folder, r)
                except Fenced:
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    _, last = check(path)
    assert last > 0


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


def every_step(tmp_path, monkeypatch, error, until, act, after):
    """`act(folder)` with a failure at its first, second, ... disk operation until none is left; returns how many."""
    for k in range(1, 400):
        folder = made(tmp_path / str(k), until=until)
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
    for r in range(6, 11):
        step(folder, r)


def test_crash_at_every_step_of_a_commit(tmp_path, monkeypatch):
    seen = set()

    def after(path, raised):
        folder, last = check(path, least=5)
        assert last in (5, 10)
        seen.add(last)
        for r in range(last + 1, 16):
            step(folder, r)
        check(path, least=15)

    assert every_step(tmp_path, monkeypatch, Crash(), 5, play, after) > 20
    assert seen == {5, 10}


def test_crash_at_every_step_of_finish(tmp_path, monkeypatch):
    def after(path, raised):
        ended = (path / "summary.json").exists()
        assert len(round_log.read(path)) == 8
        assert not ended or len(os.listdir(path / "clients")) == 1
        check(path, least=5)

    assert every_step(tmp_path, monkeypatch, Crash(), 8, lambda f: f.finish("stopped", {}), after) > 10


@pytest.mark.parametrize("finished", [True, False])
def test_crash_at_every_step_of_rewind(tmp_path, monkeypatch, finished):
    def act(folder):
        if finished:
            folder.finish("stopped", {})
        folder.rewind()

    def after(path, raised):
        check(path, least=5)

    assert every_step(tmp_path, monkeypatch, Crash(), 8, act, after) > 3


def test_full_disk_at_every_step(tmp_path, monkeypatch):
    """ENOSPC once, at any step: a sentence, and the same process may commit the same round afterwards."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")
    seen = 0

    def after(path, raised):
        nonlocal seen
        if raised is not None:
            seen += 1
            text = str(raised)
            assert isinstance(raised, RunFailed)
            assert "cannot write round" in text and "some/file" in text
            assert "No space left on device" in text and "MB free" in text and "stay valid" in text
        done = max(round_log.read(path))
        assert list(round_log.read(path)) == list(range(1, done + 1))
        folder = RunFolder.attach(path, 1)
        for r in range(done + 1, 12):
            step(folder, r)
        check(path, least=10)

    every_step(tmp_path, monkeypatch, full, 5, play, after)
    assert seen > 20


def test_a_snapshot_that_fails_leaves_no_row(tmp_path):
    folder = made(tmp_path, until=5)

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
    folder = made(tmp_path, until=4)
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
    assert done.index(rows) < done.index("round-000005")
    done.clear()
    step(folder, 6)
    assert rows not in done
    os.unlink(folder.path / "parts" / rows)
    step(folder, 7)
    assert done == ["parts"], "a new file's name is made to last"


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import test_folder as t
from rayfed.storage.run_folder import RunFolder
folder = RunFolder.attach(t.Path({path!r}), {fence})
last = max(t.round_log.read(folder.path), default=0)
for r in range(last + 1, 10**6):
    t.step(folder, r, every=3)
    if r == last + 3:
        print("go", flush=True)
"""


def test_kill_minus_nine_at_any_moment(tmp_path):
    path = made(tmp_path).path
    folder, last, reached = RunFolder.open(path, owner=ME), 0, 0
    rng = random.Random(0)
    for _ in range(10):
        code = KILLED.format(tests=str(Path(__file__).parent), path=str(path), fence=folder.fence)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"go\n"
        time.sleep(rng.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        present = max(round_log.read(path), default=0)
        folder, last = check(path, least=reached)
        assert last % 3 == 0 and present - 3 <= last <= present  # a row may stand whose snapshot does not yet
        reached = last
    assert reached >= 30


# -- content -----------------------------------------------------------------------------------------------------------


def test_rewind_without_a_snapshot_drops_all(tmp_path):
    folder = made(tmp_path)
    assert folder.rewind() == (0, None)
    for r in (1, 2):
        step(folder, r)
    assert folder.rewind() == (0, None)
    assert folder.metrics().num_rows == 0


def test_rewind_skips_a_damaged_snapshot_and_tells(tmp_path):
    folder = made(tmp_path, until=12)
    (folder.path / "snapshots" / "round-000010" / "clients.json").write_text("{}")
    folder, last = check(folder.path)
    assert last == 5
    events = [json.loads(line) for line in (folder.path / "events.jsonl").read_text().splitlines()]
    (skipped,) = [e for e in events if e["kind"] == "snapshot skipped"]
    assert skipped["round"] == 10 and "clients.json" in skipped["reason"]
    for r in range(6, 11):
        step(folder, r)
    assert folder.rewind()[0] == 10


def test_rewind_skips_a_snapshot_whose_rows_are_lost(tmp_path):
    folder = made(tmp_path, until=10)
    part = folder.path / "parts" / "rows-1.jsonl"
    part.write_bytes(b"".join(line for line in part.read_bytes().splitlines(True) if b'"round": 7,' not in line))
    _, last = check(folder.path)
    assert last == 5
    assert "the row of round 7 is lost" in (folder.path / "events.jsonl").read_text()


def test_keep_newest_snapshots(tmp_path):
    folder = made(tmp_path, until=20)
    assert [r for r, _ in snapshots.listed(folder.path / "snapshots")] == [20, 15]


def test_rounds_follow_each_other(tmp_path):
    folder = made(tmp_path, until=3)
    for r in (3, 5, 1):
        with pytest.raises(ValueError, match="cannot follow round 3"):
            step(folder, r)
    with pytest.raises(TypeError, match="metric 'name' must be a number"):
        folder.commit(4, {"name": "x"}, None, None)
    assert folder.metrics().num_rows == 3


def test_columns_types_and_nulls(tmp_path):
    import pyarrow as pa

    folder = made(tmp_path)
    folder.commit(1, {"a/x": 1, "b": np.float32(0.5), "n": np.int64(3), "never": None})
    folder.commit(2, {"a/x": 2.5, "n": True, "c/late": float("nan")})
    for finished in (False, True):
        if finished:
            folder.finish("done", {})
        table = folder.metrics()
        assert table.column_names == ["round", "a/x", "b", "n", "never", "c/late"]
        kinds = dict(zip(table.column_names, table.schema.types, strict=True))
        assert kinds == {"round": pa.int64(), "n": pa.int64()} | {
            n: pa.float64() for n in ("a/x", "b", "never", "c/late")
        }
        one, two = table.to_pylist()
        assert one == {"round": 1, "a/x": 1.0, "b": 0.5, "n": 3, "never": None, "c/late": None}
        assert two["b"] is None and two["n"] == 1 and math.isnan(two["c/late"])


def test_finish_compacts_and_a_later_resume_merges(tmp_path):
    import pyarrow.parquet as pq

    folder = made(tmp_path, until=10)
    folder.finish("done", {"rounds": 10, "wall_s": 1.5, "notes": ["n"]})
    assert not (folder.path / "parts").exists()
    assert sorted(os.listdir(folder.path / "clients")) == ["round-000005.parquet", "round-000010.parquet"]
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "done" and summary["method"] == "fedavg" and summary["executor"] == "loop"
    assert summary["metrics"]["accuracy/global"] == {"final": 0.1, "best": 0.1, "best_round": 10}
    assert summary["metrics"]["bytes/up"] == {"final": 1000, "best": 100, "best_round": 1}
    assert summary["notes"] == ["n"] and set(summary["versions"]) == {"python", "rayfed", "torch", "ray", "numpy"}

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


def test_the_lock_is_free_after_the_end(tmp_path):
    process, owner = other_process()
    try:
        folder = RunFolder.create(tmp_path, CONFIG, owner=owner)
        step(folder, 1)
        folder.finish("done", {})
        folder = RunFolder.open(folder.path, owner=ME)
        folder.close()
        folder.close()
    finally:
        process.kill()
        process.wait()


def test_a_torn_line_does_not_count(tmp_path):
    folder = made(tmp_path, until=6)
    with open(folder.path / "parts" / "rows-1.jsonl", "ab") as f:
        f.write(b'{"round": 7, "loss/gl' + b"x" * 100_000)
    assert folder.metrics().num_rows == 6
    step(RunFolder.attach(folder.path, 1), 7)
    assert folder.metrics()["round"].to_pylist() == list(range(1, 8))
    assert len((folder.path / "parts" / "rows-1.jsonl").read_bytes()) < 2000


def test_state_and_events(tmp_path):
    folder = made(tmp_path)
    folder.state(status="running", round=2, rounds=20, metrics={"a": float("nan"), "b": np.float64(1)})
    state = json.loads((folder.path / "state.json").read_text())
    assert state["run"] == folder.run_id and state["pid"] == os.getpid() and state["metrics"] == {"a": None, "b": 1.0}
    with open(folder.path / "events.jsonl", "ab") as f:
        f.write(b'{"torn')
    folder.event("x", why="y", where=Path("z"))
    assert json.loads((folder.path / "events.jsonl").read_text().splitlines()[-1])["where"] == "z"


def test_a_commit_costs_milliseconds(tmp_path):
    folder = made(tmp_path)
    row = {f"metric/{i}": float(i) for i in range(30)}
    start = time.perf_counter()
    for r in range(1, 101):
        folder.commit(r, row)
    assert (time.perf_counter() - start) / 100 < 0.05  # a shared disk; alone it is about 1 ms
