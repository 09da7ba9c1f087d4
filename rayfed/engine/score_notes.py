"""What a reader of a run's numbers should know of them first: sentences for its summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed.engine.evaluation import nothing_to_score
from rayfed.metrics import has_scores
from rayfed.storage.events import read_events

if TYPE_CHECKING:
    from rayfed.engine.collapse import Collapse
    from rayfed.partition import Federation
    from rayfed.storage.run_folder import RunFolder


def notes_on_scores(
    folder: RunFolder, federation: Federation, reached: int, collapsed: Collapse | None, stop: str | None
) -> list[str]:
    """Return what a run's events and rows say of its scores. reached: its last round; stop: the metric of `stop`."""
    rows = folder.metrics().to_pylist()
    notes = [collapsed.sentence()] if collapsed else []
    rounds: dict[str, set[int]] = {}
    for event in read_events(folder.path):
        if event["kind"] == "not scored" and event["round"] <= reached:
            rounds.setdefault(event["reason"], set()).add(event["round"])
    for reason, found in rounds.items():
        several = f"{len(found)} rounds from {min(found)} to {max(found)}"
        notes.append(f"{f'round {min(found)}' if len(found) == 1 else several}: {reason}")
    if not has_scores(rows):
        notes.append(nothing_to_score(federation) or "no metric: nothing that was to be scored could be")
    if stop and not any(row.get(stop) is not None for row in rows):
        notes.append(f"stop.metric: {stop} was measured in no round")
    return notes
