"""What the tests of the live page know of its runs."""

from __future__ import annotations

import http.client
import urllib.parse
from pathlib import Path
from typing import Any

from rayfed.monitor import Server
from rayfed.monitor.board import Board

HARMFUL = "<img src=x onerror=document.title=1>"  # a folder's name


def listed(runs: Path) -> dict[str, dict[str, Any]]:
    return {r["id"].partition("/")[0]: r for r in Board(runs).runs()}


def samples(text: str) -> dict[str, float]:
    """`name{labels}` -> value."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def get(server: Server, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers) of a request exactly as written: no client that tidies the path."""
    where = urllib.parse.urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(where, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or where)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())
