"""One writer at a time: a writer that was taken over writes nothing more."""

from __future__ import annotations

import random
import threading
import time

import pytest

from rayfed.errors import DamagedFile, Fenced
from rayfed.storage.events import read_events
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import CONFIG, ME, check_run, make_run, other_process, step


def test_old_writer_is_fenced_and_writes_nothing(tmp_path):
    old = make_run(tmp_path, until=6)
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


def test_two_writers_at_once_never_mix(tmp_path):
    """Threads take the run over from each other while they commit; every row is there once."""
    path = make_run(tmp_path).path
    began = time.monotonic()
    reached: list[int] = [0]
    failures: list[BaseException] = []

    def writer(seed):
        rng = random.Random(seed)
        try:
            while time.monotonic() < began + (2.0 if max(reached) else 60.0):
                time.sleep(
                    rng.uniform(0.0, 0.3)
                )  # a snapshot takes a moment, and is given up where the run is taken over
                folder = RunFolder.open(path, owner=ME)
                try:
                    last, _ = folder.rewind()
                    reached.append(last)
                    for r in range(last + 1, last + 1 + rng.randrange(12)):
                        step(folder, r)
                    if rng.random() < 0.7:  # else another one finds a snapshot half-written
                        folder.wait()
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
    _, last = check_run(path)
    assert last > 0


def test_the_lock_is_free_after_the_end(tmp_path):
    process, owner = other_process()
    try:
        folder = RunFolder.create(tmp_path, CONFIG, owner=owner)
        step(folder, 1)
        folder.finish("done", {})
        folder = RunFolder.open(folder.path, owner=ME)  # though the first owner is alive
        assert folder.fence == 2
        folder.close()
        folder.close()
        assert RunFolder.open(folder.path, owner=ME).fence == 3
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 90, b'{"fence": "1"}', b'{"fence": 1, "crc32": 5}'])
def test_a_damaged_lock_is_written_again_and_fences_who_still_writes(tmp_path, content):
    old = RunFolder.open(make_run(tmp_path, until=6).path, owner=ME)  # fence 2
    old.rewind()
    lock = old.path / "lock.json"
    lock.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"lock\.json is damaged: .*rayfed resume"):
        step(old, 6)
    new = RunFolder.open(old.path, owner=ME)
    assert new.fence == 3 and (old.path / ".damaged-lock.json").read_bytes() == content
    with pytest.raises(Fenced):
        step(old, 6)
    assert new.rewind()[0] == 5
    assert any(e.get("note", "").startswith("lock.json: ") for e in read_events(old.path))


def test_a_lost_lock_is_written_again(tmp_path):
    folder = make_run(tmp_path, until=6)
    (folder.path / "lock.json").unlink()
    assert RunFolder.open(folder.path, owner=ME).fence == 2
    (folder.path / "lock.json").unlink()
    (folder.path / "lock.json").mkdir()
    assert RunFolder.open(folder.path, owner=ME).fence == 3


def test_a_lock_without_a_sound_owner_is_nobodys(tmp_path):
    folder = make_run(tmp_path)
    folder.write_lock(owner={"pid": 1})
    assert RunFolder.open(folder.path, owner=ME).fence == 2
