"""The process that answers for a folder, and whether it still runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")
CLOCK_S = 2.0  # by which a start time that is computed from the machine's clock may differ between two calls


@dataclass(frozen=True)
class Owner:
    """The process that answers for a run: the driver."""

    host: str
    pid: int
    start: str  # as `process_start` gives it; distinguishes a reused pid

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), str(process_start(os.getpid())))

    @classmethod
    def read(cls, value: Any) -> Owner | None:
        """Return the owner that a file names (what `asdict` gave); None if it names none."""
        try:
            found = cls(**value)
        except TypeError:
            return None
        right = isinstance(found.host, str) and isinstance(found.pid, int) and isinstance(found.start, str)
        return found if right else None

    def here(self) -> bool:
        """Return whether it is a process of this machine, which alone can be looked up."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Return whether the process still runs; True for one on another machine, which cannot be looked up from here."""
        return not self.here() or _same(process_start(self.pid), self.start)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def process_start(pid: int) -> str | None:
    """Return what no other process has, also none with the same pid: the id of the machine's boot and the ticks from there to
    the process's start. Without /proc it is the time of the start in seconds. None if no such process runs; a zombie does not.
    """
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return _start_time(pid)
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # from the third on; the second is a name, which may hold anything
    return None if fields[0] in (b"Z", b"X") else f"{boot}/{int(fields[19])}"


def _start_time(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def _same(now: str | None, then: str) -> bool:
    if now is None or "/" in now or "/" in then:
        return now == then
    try:
        return abs(float(now) - float(then)) < CLOCK_S
    except ValueError:
        return False
