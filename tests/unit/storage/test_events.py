"""Events are read in their order; what is torn or no event is left out."""

from __future__ import annotations

from pathlib import Path

from rayfed.storage.events import read_events


def test_events_are_read_without_torn_lines(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    lines = ['{"kind": "resumed", "round": 2}', "", '{"round": 3}', "[1]", '{"kind": "failed"}', '{"kind": "do']
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    assert read_events(tmp_path) == [{"kind": "resumed", "round": 2}, {"kind": "failed"}]
