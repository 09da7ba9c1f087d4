"""A run that is advanced piece by piece, left, and cloned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayfed.engine.client_states import ClientStates
from rayfed.engine.pool import LocalPool
from rayfed.engine.runner import Runner
from rayfed.errors import RunFailed
from rayfed.storage.owner import Owner
from rayfed.storage.run_folder import RunFolder
from tests import toy

LONG = {"rounds": 5, "storage": {"snapshot_every": 2, "keep": 9}}


def seen(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not k.startswith(toy.VOLATILE)} for r in folder.metrics().to_pylist()]


def test_a_run_in_pieces_is_the_run(tmp_path: Path) -> None:
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.create(tmp_path / "pieces", c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    assert [runner.advance(1), runner.advance(3), runner.advance(3)] == [1, 3, 3]
    assert (folder.path / "snapshots" / "round-000003").is_dir(), "where a piece ends, it can be cloned"
    assert runner.advance(99) == 5 and runner.finish().status == "done"
    assert seen(folder) == whole.rows and json.loads((folder.path / "summary.json").read_text())["rounds"] == 5


def test_a_piece_can_be_left(tmp_path: Path) -> None:
    c = toy.config("fedavg", **LONG)
    folder = RunFolder.create(tmp_path, c.to_dict(), owner=Owner.me())
    runner = Runner(c, toy.federation(c), LocalPool(), folder)
    runner.prepare()
    runner.advance(3)
    assert runner.finish() == ("stopped", 3) and not (folder.path / "summary.json").exists()
    again = Runner(c, toy.federation(c), LocalPool(), RunFolder.open(folder.path, owner=Owner.me()))
    assert again.execute() == ("done", 5)
    assert seen(folder) == toy.run_folder("fedavg", tmp_path / "whole", **LONG).rows


def test_a_clone_goes_on_as_the_run_did(tmp_path: Path) -> None:
    """Scaffold keeps states at clients: they must be in the clone too."""
    whole = toy.run_folder("scaffold", tmp_path / "whole", **LONG)
    c = toy.config("scaffold", **LONG)
    folder = RunFolder.clone(whole.folder.path, 2, tmp_path / "clone", c.to_dict(), owner=Owner.me())
    assert [r["round"] for r in folder.metrics().to_pylist()] == [1, 2] and len(folder.clients(2)) == 14
    assert folder.run_id != whole.folder.run_id
    assert Runner(c, toy.federation(c), LocalPool(), folder).execute() == ("done", 5)
    assert seen(folder) == whole.rows
    store = ClientStates(LocalPool())
    store.load(folder.path / "snapshots" / "round-000005", folder.path / "segments")
    assert {k: v.keys() for k, v in toy.states(store).items()} == {k: v.keys() for k, v in whole.clients.items()}
    with pytest.raises(RunFailed, match="round 3"):
        RunFolder.clone(whole.folder.path, 3, tmp_path / "other", c.to_dict(), owner=Owner.me())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clone", "whole"], "nothing half-made"
