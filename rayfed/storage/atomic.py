"""Writes that happen completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 4 << 20  # bytes read at a time


class Sum(NamedTuple):
    """What a file is compared with: its size and its CRC-32."""

    size: int
    crc32: int

    @classmethod
    def of(cls, content: bytes) -> Sum:
        """Return the sum of bytes."""
        return cls(len(content), zlib.crc32(content))

    @classmethod
    def of_file(cls, path: Path) -> Sum:
        """Return the sum of a file. OSError as the file system raises it."""
        size = crc = 0
        with open(path, "rb") as f:
            while block := f.read(BLOCK):
                size, crc = size + len(block), zlib.crc32(block, crc)
        return cls(size, crc)

    @classmethod
    def read(cls, value: Any) -> Sum:
        """Return the sum that a JSON file holds as [size, crc32]. ValueError if it holds something else."""
        if isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
            return cls(*value)
        raise ValueError(f"{value!r} is no size and checksum")

    def damage(self, path: Path) -> str | None:
        """Return what is wrong with a file that should have this sum, None if nothing is. The size is compared first."""
        try:
            if not path.is_file():
                return "it is missing" if not path.exists() else "it is no file"
            if (size := path.stat().st_size) != self.size:
                return f"it has {size} bytes instead of {self.size}"
            return None if Sum.of_file(path) == self else "it has a wrong checksum"
        except OSError as e:
            return f"it cannot be read: {e.strerror or e}"


def write_all(fd: int, data: Any) -> None:
    """Write every byte of a buffer to a file descriptor. OSError if the disk does not take it."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def sync_file(path: Path) -> None:
    """Make the content of a file durable, whoever wrote it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def free_aside(path: Path, folder: Path | None = None) -> Path:
    """Return a free name `.damaged-NAME` for what is set aside. folder: where, by default where it is."""
    where, n = folder or path.parent, 1
    aside = where / f".damaged-{path.name}"
    while aside.exists() or aside.is_symlink():
        n += 1
        aside = where / f".damaged-{path.name}-{n}"
    return aside


def set_aside(path: Path, folder: Path | None = None) -> Path:
    """Rename what is damaged to `.damaged-NAME`, where its owner can look at it; return the new path. folder: as in `free_aside`.

    OSError if that fails.
    """
    aside = free_aside(path, folder)
    os.replace(path, aside)
    return aside


def os_error_text(error: OSError, path: Path) -> str:
    """Return an OSError as text, with the free space at `path` if that may be the cause."""
    text = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        while not path.exists() and path != path.parent:
            path = path.parent
        with contextlib.suppress(OSError):
            text += f" ({shutil.disk_usage(path).free / 1e6:,.1f} MB free there)"
    return text
