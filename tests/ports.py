"""Ports that nothing listens on."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port that was free just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
