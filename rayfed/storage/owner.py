"""The process that answers for a folder, and whether it still runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The process that answers for a run: the driver."""

    host: str
    pid: int
    start: float  # seconds since the epoch; distinguishes a reused pid

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        import psutil

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def here(self) -> bool:
        """Return whether it is a process of this machine, which alone can be looked up."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Return whether the process still runs; True for one on another machine, which cannot be looked up from here."""
        import psutil

        if not self.here():
            return True
        try:
            process = psutil.Process(self.pid)
            # The start time is computed from the machine's clock, which may be corrected a little between two calls.
            same = abs(process.create_time() - self.start) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
