"""The W&B sink: a resumed run continues the W&B run of the same id."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy
from tests.unit.track.fakes import FakeWandB, events


def test_wandb_continues_the_run_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    fake = FakeWandB(monkeypatch)
    first = toy.run_folder("fedavg", tmp_path, rounds=3, stop_after=2, track=["wandb"])
    toy.run_folder("fedavg", tmp_path, rounds=3, resume=True, track=["wandb"])
    assert [i["id"] for i in fake.inits] == [first.folder.run_id] * 2
    assert all(i["resume"] == "allow" and i["project"] == "rayfed" for i in fake.inits)
    assert fake.inits[0]["config"]["method"] == {"name": "fedavg"} and fake.inits[0]["dir"] == first.folder.path
    assert [s for s, _ in fake.logged] == [1, 2, 3] and fake.exits == [0, 0] and fake.summary == {"status": "done"}
    assert all(None not in row.values() and "round" not in row for _, row in fake.logged)


def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ran = toy.run_folder("fedavg", tmp_path, rounds=2, track=["wandb"])
    assert not events(ran.folder.path, "tracking failed")
    (where,) = (ran.folder.path / "wandb").glob(f"offline-run-*-{ran.folder.run_id}")
    stored = (where / f"run-{ran.folder.run_id}.wandb").read_bytes()
    assert repr(ran.rows[-1]["loss/global"]).encode() in stored
