"""The live page's server: what it refuses, and that reading changes nothing."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from pathlib import Path

import pytest

from rayfed.errors import ConfigError
from rayfed.monitor import Server
from rayfed.monitor.board import Board
from tests.unit.monitor.runs import get, listed


def test_it_listens_on_this_machine_only(server: Server) -> None:
    assert server.http.server_address[0] == "127.0.0.1"
    for host in ("example.org", "example.org:80", "", "127.0.0.1.example.org"):  # a page that has its name point here
        assert get(server, "/api/runs", host=host or " ")[0] == 403
    assert get(server, "/", host="localhost:8270")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_get(server: Server, method: str) -> None:
    code, _, headers = get(server, "/api/runs", method)
    assert code == 405 and headers["Allow"] == "GET, HEAD"


def test_no_path_leads_out(server: Server, runs: Path) -> None:
    """Whatever is asked, nothing but the page, the two lists and the metrics, of runs that were found."""
    secret = runs.parent / "secret"
    shutil.copytree(runs / listed(runs)["done"]["id"], secret)
    tries = [
        "../secret",
        str(secret),
        "done/../../secret",
        "loop/done",
        "..",
        "/",
        "",
        "./torn",
        "torn/",
        "torn/.",
        "torn\0",
    ]
    for name in tries:
        assert get(server, f"/api/run?id={urllib.parse.quote(name, safe='')}")[0] == 404, name
    for path in (
        "/../secret/config.yaml",
        "/torn/config.yaml",
        "/%2e%2e/secret",
        "//etc/passwd",
        "/api/../secret",
        "/api/run/torn",
    ):
        assert get(server, path)[0] == 404, path
    assert get(server, "/api/run?id=torn")[0] == 200


def no_constant(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


def test_reading_changes_nothing(server: Server, runs: Path) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [p for p in runs.rglob("*") if p.is_file() and not p.is_symlink()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = state()
    for path in ("/", "/metrics", "/api/runs", *(f"/api/run?id={urllib.parse.quote(n)}" for n in Board(runs).paths())):
        code, body, headers = get(server, path)
        assert code == 200 and headers["Content-Security-Policy"].startswith("default-src 'none'"), path
        if path.startswith("/api"):
            json.loads(body, parse_constant=no_constant)
    assert state() == before
    code, body, headers = get(server, "/api/runs", "HEAD")
    assert code == 200 and body == "" and int(headers["Content-Length"]) > 0


def test_a_taken_port(server: Server, runs: Path) -> None:
    port = server.http.server_address[1]
    with pytest.raises(ConfigError, match=f"--port {port}: .*--port 0"):
        Server(runs, port)
