"""The events of a run and the processes that compute it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rayfed.storage.events import read_events


def actors(path: Path, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return where a run computes: {"host", "here", "restarts", "processes": [{"what", "pid", "node", "device", "alive", "rss"}]}.

    Processes are looked up only on this machine's node, and only under pids that are still valid.
    """
    log = read_events(path)
    placed = [i for i, e in enumerate(log) if e["kind"] == "placed"]
    here = state.get("host") == socket.gethostname()
    listed: list[dict[str, Any]] = []
    if placed:
        event = log[placed[-1]]
        restarted = [e.get("actor") for e in log[placed[-1] :] if e["kind"] == "actor restarted"]
        clients = event.get("clients") or []
        listed.append({"what": "server", "pid": event.get("server")})
        for i, about in enumerate(clients):
            process = {k: about.get(k) for k in ("pid", "node", "device", "threads")}
            listed.append({"what": f"client actor {i}", "replaced": restarted.count(i), **process})
        home = (clients or [{}])[0].get("node")
        for process in listed:  # on another node a pid means another process
            if here and process.get("node", home) == home and not process.get("replaced"):
                process.update(look_up(process["pid"], event["time"]))
    elif state.get("pid"):
        alive = look_up(state["pid"]) if here else {}
        listed.append({"what": "the run's own process (no Ray)", "pid": state["pid"], **alive})
    restarts = max((int(r.get("actors/restarts") or 0) for r in rows[-1:]), default=0)
    return {"host": state.get("host"), "here": here, "restarts": restarts, "processes": listed}


def look_up(pid: Any, started_before: str | None = None) -> dict[str, Any]:
    """Return whether a process of this machine is alive, and its resident bytes.

    started_before: ISO time; a process that started later is another one that got the same pid.
    """
    import psutil

    try:
        process = psutil.Process(int(pid))
        with process.oneshot():
            alive = process.status() != psutil.STATUS_ZOMBIE
            if started_before is not None:
                limit = datetime.fromisoformat(started_before.replace("Z", "+00:00")).timestamp() + 2
                alive = alive and process.create_time() <= limit
            return {"alive": alive, "rss": process.memory_info().rss if alive else None}
    except (psutil.Error, ValueError, TypeError):
        return {"alive": False, "rss": None}
