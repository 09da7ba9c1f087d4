"""Whether the Ray that a process computes on is still there: its head and the node on this machine take connections.

Ray itself ends a driver that has lost its head, without an exception, but only after a minute, and calls wait that long.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

Place = tuple[str, int]  # host and port

EVERY_S = 1.0  # between two looks
LOST_S = (
    5.0  # without an answer, after which a process is taken for dead; a head that starts again has RECONNECT's seconds
)
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # Ray's variable for a head that comes back: its seconds are ours
CONNECT_S = 2.0


class RayWatch:
    """Looks after some of Ray's processes from a thread of its own. lost: a sentence once one of them is gone, None before."""

    def __init__(
        self,
        places: Mapping[str, Place],
        at_loss: Callable[[str], None] = lambda sentence: None,
        *,
        patience: float = LOST_S,
        every: float = EVERY_S,
    ):
        """places: by the words for who listens there; at_loss: is called with the sentence, in the thread; patience: seconds."""
        self.lost: str | None = None
        self._places, self._at_loss, self._every = dict(places), at_loss, every
        self._patience = float(os.environ.get(RECONNECT, patience))
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="rayfed-ray-watch", daemon=True).start()

    def look(self) -> str | None:
        """Return a sentence on one that does not answer now, None where all do."""
        for name, place in self._places.items():
            if not answers(place):
                return f"{name} at {place[0]}:{place[1]} is gone"
        return None

    def stop(self) -> None:
        """Look no more."""
        self._over.set()

    def _watch(self) -> None:
        silent = None  # since when one is
        while not self._over.wait(self._every):
            gone = self.look()
            if gone is None:
                silent = None
                continue
            silent = silent or time.monotonic()
            if time.monotonic() - silent >= self._patience:
                self.lost = gone
                self._at_loss(gone)
                return


def answers(place: Place) -> bool:
    """Return whether something takes connections there; the system does that for a process that is merely busy."""
    try:
        socket.create_connection(place, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def parse_place(address: str) -> Place:
    """Return host and port of HOST:PORT or [HOST]:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
