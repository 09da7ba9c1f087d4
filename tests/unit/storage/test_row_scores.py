"""Scores of each row of a round."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayfed.storage import row_scores


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = {
        "global": {"rows": np.arange(3), "accuracy": np.array([0, 1, 1], np.float32)},
        "personal": {"rows": np.zeros(0)},
    }
    row_scores.write(tmp_path, 7, made)
    row_scores.write(tmp_path, 7, made)  # a round that is repeated
    found = row_scores.read(tmp_path, 7)
    assert {s: list(x) for s, x in found.items()} == {s: list(x) for s, x in made.items()}
    assert found["global"]["accuracy"].tolist() == [0, 1, 1] and found["global"]["accuracy"].dtype == np.float32
    assert row_scores.read(tmp_path, 8) == {}
