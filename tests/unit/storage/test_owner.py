"""The owner of a run: alive, dead, or on another machine."""

from __future__ import annotations

import dataclasses
import os
import time

import pytest

from rayfed.errors import ConfigError
from rayfed.storage import owner
from rayfed.storage.owner import Owner, process_start
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import CONFIG, ME, other_process


def test_a_living_owner_keeps_its_folder(tmp_path):
    process, other = other_process()
    try:
        folder = RunFolder.create(tmp_path, CONFIG, owner=other)
        assert other.alive()
        with pytest.raises(ConfigError, match=f"process {process.pid} .*still runs"):
            RunFolder.open(folder.path, owner=ME)
        assert RunFolder.attach(folder.path, folder.fence).fence == 1
    finally:
        process.kill()
    time.sleep(0.2)
    assert not other.alive()  # a zombie is dead
    process.wait()
    assert not other.alive()
    assert RunFolder.open(folder.path, owner=ME).fence == 2


def test_a_reused_pid_is_somebody_else(tmp_path):
    assert ME.alive()
    assert not dataclasses.replace(ME, start=f"{ME.start}0").alive()


def test_an_owner_elsewhere_needs_the_variable(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, CONFIG, owner=Owner("far-away", 12, "boot/1"))
    monkeypatch.delenv("RAYFED_TAKE_OVER", raising=False)
    with pytest.raises(ConfigError, match=r"process 12 on far-away.*RAYFED_TAKE_OVER=1"):
        RunFolder.open(folder.path, owner=ME)
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    assert RunFolder.open(folder.path, owner=ME).fence == 2


def test_the_clock_does_not_decide(monkeypatch):
    """What names a process is the machine's boot and ticks: a clock that is set back changes nothing, another boot does."""
    assert ME.start == f"{(owner.PROC / 'sys/kernel/random/boot_id').read_text().strip()}/{ME.start.rpartition('/')[2]}"
    assert process_start(os.getpid()) == ME.start
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert ME.alive()
    assert not dataclasses.replace(ME, start=f"another-boot/{ME.start.rpartition('/')[2]}").alive()
    assert process_start(2**22 + 1) is None


def test_without_proc_the_start_time_decides(monkeypatch, tmp_path):
    monkeypatch.setattr(owner, "PROC", tmp_path)
    me = Owner.me()
    assert "/" not in me.start and me.alive()
    assert dataclasses.replace(me, start=str(float(me.start) + 1)).alive(), "it is computed from the clock"
    assert not dataclasses.replace(me, start=str(float(me.start) + 10)).alive()
    assert not dataclasses.replace(me, start="a word").alive()
    assert process_start(2**22 + 1) is None


@pytest.mark.parametrize(
    "value", [None, {}, [], "x", {"host": 1, "pid": 2, "start": "3"}, {"host": "h", "pid": 1, "start": 2.5}]
)
def test_what_names_no_owner_is_none(value):
    assert Owner.read(value) is None


def test_an_owner_is_read_as_it_was_written():
    assert Owner.read(dataclasses.asdict(ME)) == ME
