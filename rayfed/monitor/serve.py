"""The live page's server: GET only, on this machine's loopback address, and nothing but what `Board` reads."""

from __future__ import annotations

import base64
import errno
import hashlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rayfed.errors import ConfigError
from rayfed.monitor.board import Board
from rayfed.monitor.page import CSS, SCRIPT, html
from rayfed.storage.atomic import os_error_text
from rayfed.storage.text_files import json_bytes, timestamp

Query = dict[str, str]
Answer = tuple[str, bytes]  # content type, body
HOST, PORT = "127.0.0.1", 8270
HOST_NAMES = ("127.0.0.1", "localhost", "[::1]")  # in requests, also through a tunnel; others belong to foreign pages


class Server:
    """The server of `rayfed monitor --serve`, listening from its construction on.

    port: 0 takes any free one. ConfigError if the port is taken.
    """

    def __init__(self, folder: Path, port: int = PORT):
        board = Board(folder)
        page = html(str(folder.resolve())).encode()

        def runs(query: Query) -> Answer:
            return _json({"time": timestamp(), "runs": board.runs(), "sweeps": board.sweeps()})

        def run(query: Query) -> Answer | None:
            found = board.run(query.get("id", ""))
            return None if found is None else _json(found)

        def log(query: Query) -> Answer | None:
            found = board.log(query.get("id", ""))
            return None if found is None else _json(found)

        def report(query: Query) -> Answer | None:
            found = board.report(query.get("id", ""))
            return None if found is None else ("text/html; charset=utf-8", found)

        class Handler(_Handler):
            answers = {  # noqa: RUF012
                "/": lambda query: ("text/html; charset=utf-8", page),
                "/api/runs": runs,
                "/api/run": run,
                "/api/log": log,
                "/report": report,
                "/metrics": lambda query: ("text/plain; version=0.0.4; charset=utf-8", board.prometheus().encode()),
            }

        try:
            self.http = ThreadingHTTPServer((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            reason = os_error_text(error, folder) if isinstance(error, OSError) else str(error)
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            hint = "; choose another one with --port N, or any free one with --port 0" if taken else ""
            raise ConfigError(f"monitor: --port {port}: {reason}{hint}") from error
        self.http.daemon_threads = True
        self.url = f"http://{HOST}:{self.http.server_address[1]}/"

    def serve_forever(self) -> None:
        """Answer requests until interrupted."""
        try:
            self.http.serve_forever()
        finally:
            self.http.server_close()

    def close(self) -> None:
        """End `serve_forever` from another thread."""
        self.http.shutdown()


def _json(value: Any) -> Answer:
    return "application/json", json_bytes(value)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(CSS)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Reports have styles of their own, and no scripts.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class _Handler(BaseHTTPRequestHandler):
    answers: dict[str, Callable[[Query], Answer | None]]  # path -> what answers it; None: 404
    server_version, sys_version = "rayfed", ""
    timeout = 20

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):  # every other method
            return lambda: self._send(405, "text/plain; charset=utf-8", b"only GET\n")
        raise AttributeError(name)

    def _answer(self) -> None:
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in HOST_NAMES:
            return self._send(403, "text/plain; charset=utf-8", b"use 127.0.0.1 or localhost\n")
        try:
            url = urlsplit(self.path)
            answer = self.answers.get(url.path)
            found = answer({k: v[-1] for k, v in parse_qs(url.query).items()}) if answer else None
        except Exception as error:  # the page shows it and tries again
            text = f"{type(error).__name__}: {error}\n".encode(errors="replace")
            return self._send(500, "text/plain; charset=utf-8", text)
        if found is None:
            return self._send(404, "text/plain; charset=utf-8", b"there is nothing with this name\n")
        self._send(200, *found)

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        policy = REPORT_POLICY if self.path.startswith("/report?") else POLICY
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        }  # fmt: skip
        if code == 405:
            headers["Allow"] = "GET, HEAD"
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the terminal belongs to the user."""
