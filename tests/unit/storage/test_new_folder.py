"""New folders appear completely or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from rayfed.errors import ConfigError
from rayfed.storage.run_folder import RunFolder
from tests.unit.storage.writer import CONFIG, ME, make_run


def test_create_makes_one_folder_at_once(tmp_path):
    folder = make_run(tmp_path / "deep" / "runs")
    assert os.listdir(tmp_path / "deep" / "runs") == [folder.path.name]
    assert folder.path.name.startswith("toy-2") and folder.run_id == folder.path.name
    assert folder.config == CONFIG
    assert make_run(tmp_path / "deep" / "runs").path != folder.path


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
