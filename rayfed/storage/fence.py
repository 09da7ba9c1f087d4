"""The lock of a run folder: one writer at a time, and a writer whose folder was taken over can write nothing more.

The writer holds a number, the fence. Whoever opens the folder raises it; every write checks it, under a file lock unless
what an older writer writes is in files of its own, which do not count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayfed.errors import DamagedFile, Fenced, RayfedError, RunFailed
from rayfed.storage.atomic import durable_write, os_error_text
from rayfed.storage.text_files import sealed_bytes, unseal

LOCK_WAIT_S = 300.0  # an old writer may be in the middle of a large snapshot


class FencedFolder:
    """A folder that its writer may change only while its fence is the one of `lock.json`."""

    def __init__(self, path: Path, fence: int):
        self.path, self.fence = Path(path), fence
        self._checked: tuple[int, int, int] | None = None  # which `lock.json` had this fence: its inode, time and size

    def read_lock(self) -> dict[str, Any]:
        """Return `lock.json`: run, fence, owner and time. DamagedFile says what is wrong with it."""
        try:
            with open(f"{self.path}/lock.json", "rb", buffering=0) as f:
                found = unseal(f.read())
            if type(found.get("fence")) is not int:
                raise ValueError("it has no fence")
        except ValueError as e:
            raise DamagedFile(self.path, self.path / "lock.json", str(e)) from None
        return found

    def write_lock(self, **changes: Any) -> None:
        """Change entries of `lock.json`; call it only under `locked`."""
        durable_write(self.path / "lock.json", sealed_bytes({**self.read_lock(), **changes}))

    @contextlib.contextmanager
    def locked(self, doing: str, failure: type[RayfedError] = RunFailed, check: bool = True) -> Iterator[None]:
        """Hold the folder's lock, on this machine and on file systems that share locks.

        doing: what the writer is about to do, for messages; check: whether the fence must be valid. Fenced if it is not;
        an OSError inside becomes a `failure`; RunFailed if another writer holds the lock for too long.
        """
        try:
            fd = os.open(f"{self.path}/.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _flock(fd, self.path)
                if check:
                    self._check_fence()
                yield
            finally:
                os.close(fd)  # frees the lock, as does the end of the process
        except OSError as error:
            raise failure(self._failed(doing, error)) from error

    @contextlib.contextmanager
    def unlocked(self, doing: str) -> Iterator[None]:
        """Check the fence without the lock, for what may take long or is done in every round, in files of this writer alone.

        `lock.json` is read again only where it has changed. Arguments and errors as in `locked`; Fenced too where an OSError inside
        comes from another writer that has cleared this one's files away.
        """
        try:
            found = os.stat(f"{self.path}/lock.json")
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark != self._checked:
                self._check_fence()
                self._checked = mark
            yield
        except OSError as error:
            with contextlib.suppress(OSError, DamagedFile):
                self._check_fence()
            raise RunFailed(self._failed(doing, error)) from error

    def _check_fence(self) -> None:
        if (fence := self.read_lock()["fence"]) != self.fence:
            raise Fenced(
                f"{self.path} has been taken over by another process (its fence is {fence}, this writer's "
                f"{self.fence}); nothing was written"
            )

    def _failed(self, doing: str, error: OSError) -> str:
        where = error.filename or self.path
        return f"cannot {doing}: {where}: {os_error_text(error, self.path)}. The rows and snapshots written before stay valid"


def _flock(fd: int, path: Path) -> None:
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RunFailed(f"{path} has been locked by another writer for {LOCK_WAIT_S:.0f} s") from None
            time.sleep(0.005)
