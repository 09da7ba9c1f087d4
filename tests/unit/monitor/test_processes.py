"""The processes of a run: looked up only where a pid means what the run's events say."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from rayfed.monitor.processes import actors


def test_processes_are_looked_up_only_where_they_are(tmp_path: Path) -> None:
    me = {"pid": os.getpid(), "node": "a", "device": "cpu", "threads": 1}
    event = {
        "time": "2999-01-01T00:00:00.000Z",
        "kind": "placed",
        "server": os.getpid(),
        "clients": [me, {**me, "node": "b"}],
    }
    lines = [event, {"time": event["time"], "kind": "actor restarted", "actor": 0, "restarts": 1}]

    def seen(lines: list[dict[str, Any]], host: str) -> list[Any]:
        (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        return [p.get("alive") for p in actors(tmp_path, {"host": host}, [])["processes"]]

    here = socket.gethostname()
    assert seen(lines[:1], here) == [True, True, None]  # the second actor is on another node
    assert seen(lines, here) == [True, None, None]  # the first one was replaced, by a process of another pid
    assert seen(lines[:1], "elsewhere") == [None, None, None]
    assert seen([{**event, "time": "2001-01-01T00:00:00.000Z"}], here)[0] is False  # the pid is somebody else's by now
    found = actors(tmp_path, {"host": here}, [{"round": 1, "actors/restarts": 3}])
    assert found["restarts"] == 3
