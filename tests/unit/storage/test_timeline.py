"""Who worked when, as a run keeps it: the first visits, ages of all replies; of methods that wait and that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayfed.storage import timeline
from tests import toy

SPREAD = {"devices": {"profile": "lognormal", "sigma": 1.0, "speed": 10.0}}


def test_visits_up_to_a_number_and_all_ages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST", 3)
    monkeypatch.setattr(timeline, "OLDEST", 4)
    kept = timeline.grown({}, [([4, 7], [0.0, 0.0], [1.0, 2.0])], {0: 2})
    kept = timeline.grown(kept, [([4, 5], np.array([2.0, 2.0]), np.array([3.0, 9.0]))], {1: 1, 99: 2})
    kept = timeline.grown(kept, [([6], [3.0], [4.0])], {})
    timeline.write(tmp_path, kept)
    found = {n: x.tolist() for n, x in timeline.read(tmp_path).items()}
    assert found == {"client": [4, 7, 4], "began": [0, 0, 2], "ended": [1, 2, 3], "stale": [2, 1, 0, 0, 2]}
    timeline.write(tmp_path / "none", {})
    assert timeline.read(tmp_path / "none") == {} and timeline.grown({}, [], {}) == {}
    assert kept["client"].dtype == kept["stale"].dtype == torch.int64


def test_a_run_that_waits(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, rounds=2, **SPREAD)
    found, took = timeline.read(ran.folder.path), toy.make_fed(toy.config(**SPREAD)).durations()
    assert len(found["client"]) == 14 and "stale" not in found
    first = found["client"][:7]
    assert (found["began"][:7] == 0).all() and found["ended"][:7] == pytest.approx(took[first])
    assert (found["began"][7:] == found["ended"][:7].max()).all()


def test_a_run_that_waits_for_nobody(tmp_path: Path) -> None:
    ran = toy.run_folder({"name": "fedbuff", "buffer": 2}, tmp_path, rounds=4, **SPREAD)
    found, took = timeline.read(ran.folder.path), toy.make_fed(toy.config(**SPREAD)).durations()
    assert found["ended"] - found["began"] == pytest.approx(took[found["client"]])
    assert (
        len(found["client"]) == 7 + 8 - 1 and found["stale"].sum() == 8
    )  # the last step's own place is filled in the next round
    assert not (toy.run_folder("fedavg", tmp_path / "bare").folder.path / timeline.FILE).exists()
