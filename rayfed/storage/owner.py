"""Who writes a folder: the process that answers for a run, and whether it still runs."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Owner:
    """The process that answers for a run: the driver."""

    host: str
    pid: int
    start: float  # seconds since the epoch; tells a reused pid apart

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        import psutil

        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def here(self) -> bool:
        """On this machine, where it can be looked up."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether the process still runs. One on another machine counts as alive: it cannot be looked up from here."""
        import psutil

        if not self.here():
            return True
        try:
            process = psutil.Process(self.pid)
            # The start time is computed from the machine's clock, which may be corrected a little between two looks.
            same = abs(process.create_time() - self.start) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
