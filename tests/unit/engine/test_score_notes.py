"""Sentences about a run's numbers."""

from __future__ import annotations

from pathlib import Path

from rayfed.engine.score_notes import notes_on_scores
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import toy


def test_what_could_not_be_scored_is_said_once_with_its_rounds(tmp_path: Path) -> None:
    folder, federation = RunFolder.create(tmp_path, {"name": "x"}, owner=Owner.me()), toy.federation(toy.config())
    for r in (1, 2, 3):
        folder.commit(r, {"loss/global": 1.0})
        folder.event("not scored", round=r, reason="a piece failed")
    folder.event("not scored", round=4, reason="after the end")
    assert notes_on_scores(folder, federation, 3, None, None) == ["3 rounds from 1 to 3: a piece failed"]
    assert notes_on_scores(folder, federation, 1, None, "accuracy/global") == [
        "round 1: a piece failed",
        "stop.metric: accuracy/global was measured in no round",
    ]
