"""Writes that happen completely or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rayfed.storage.atomic import durable_write, make_folder, os_error_text, remove_leftovers
from tests.disk import Disk, Op


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "a.json"
    durable_write(file, b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(os, step, full)
        durable_write(file, b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.json"]
    durable_write(file, b"ne", b"w")
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.json"]


def test_a_new_folders_name_outlives_the_machine(tmp_path: Path) -> None:
    with Disk(tmp_path) as seen:
        make_folder(tmp_path / "a")
        make_folder(tmp_path / "a")
        with pytest.raises(FileNotFoundError):
            make_folder(tmp_path / "b" / "c")
    assert seen.ops == [Op("mkdir", "a"), Op("sync", "")]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", ".lock", ".damaged-round-000005", ".a.123"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".round-000010-1" / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".damaged-round-000005", ".lock", "a"]
    remove_leftovers(tmp_path / "nothing")


def test_a_full_disk_is_described_with_its_free_space(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "No space left" in os_error_text(full, tmp_path / "not" / "there") and "MB free" in os_error_text(
        full, tmp_path
    )
    assert os_error_text(PermissionError(errno.EACCES, "Permission denied"), tmp_path) == "Permission denied"
