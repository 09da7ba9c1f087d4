"""Writes that happen completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any


def write_all(fd: int, data: Any) -> None:
    """Write every byte of a buffer to a file descriptor. OSError if the disk does not take it."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def sync_dir(path: Path) -> None:
    """Make names that were created, renamed or removed in a folder durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Create a folder, if it is not there, and make its name durable. OSError if that is not possible."""
    try:
        path.mkdir()
    except FileExistsError:
        return
    sync_dir(path.parent)


def durable_write(path: Path, *parts: Any, sync: bool = True) -> None:
    """Replace a file by `parts` (bytes-like) in one step: a reader sees the old file or the new one, also after a crash.

    sync=False does not wait for the disk: for a live status, which may be lost. OSError leaves the old file.
    """
    hidden = path.parent / f".{path.name}.{os.getpid()}"
    try:
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for part in parts:
                write_all(fd, part)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(hidden, path)
    except OSError:
        remove(hidden)
        raise
    if sync:
        sync_dir(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder if that is possible; never raises OSError."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        pass


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left: names that start with a dot, except `.lock` and `.damaged-...`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if entry.name.startswith(".") and entry.name != ".lock" and not entry.name.startswith(".damaged-"):
                remove(entry)


def os_error_text(error: OSError, path: Path) -> str:
    """Return an OSError as text, with the free space at `path` if that may be the cause."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        while not path.exists() and path != path.parent:
            path = path.parent
        with contextlib.suppress(OSError):
            text += f" ({shutil.disk_usage(path).free / 1e6:,.1f} MB free there)"
    return text
