"""The owner of a run: alive, dead, or on another machine."""

from __future__ import annotations

import dataclasses
import time

import pytest

from rayfed.errors import ConfigError
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import CONFIG, ME, other_process


def test_a_living_owner_keeps_its_folder(tmp_path):
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


def test_an_owner_elsewhere_needs_the_variable(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, CONFIG, owner=Owner("far-away", 12, 0.0))
    monkeypatch.delenv("RAYFED_TAKE_OVER", raising=False)
    with pytest.raises(ConfigError, match=r"process 12 on far-away.*RAYFED_TAKE_OVER=1"):
        RunFolder.open(folder.path, owner=ME)
    monkeypatch.setenv("RAYFED_TAKE_OVER", "1")
    assert RunFolder.open(folder.path, owner=ME).fence == 2
