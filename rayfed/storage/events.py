"""What happened in a run: its folder's `events.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

READS_ROUNDS = "reads rounds"  # kind of the event that a method's rounds follow from the number of all of them


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run folder's `events.jsonl`, oldest first; torn lines are left out."""
    found = []
    try:
        lines = (path / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("kind"):
            found.append(event)
    return found
