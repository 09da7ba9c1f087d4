"""What the engine carries from round to round: provisional until a commit, in every snapshot."""

from __future__ import annotations

from pathlib import Path

import torch

from rayfed import tree
from rayfed.engine.engine_state import EngineState
from tests import toy

CLIP = {"kind": "clip", "norm": 0.1, "quantile": 0.5}


def test_what_a_round_keeps_is_provisional() -> None:
    state = EngineState()
    state.put("a", {"x": torch.ones(2)})
    state.commit()
    state.put("a", {"x": torch.zeros(2)})
    state.put("b", {"y": torch.zeros(1)})
    assert float(state.get("a")["x"][0]) == 0 and state.get("b")
    state.rollback()
    assert float(state.get("a")["x"][0]) == 1 and state.get("b") == {}


def test_it_survives_the_disk_and_nothing_leaves_no_file(tmp_path: Path) -> None:
    state, other = EngineState(), EngineState()
    state.save(tmp_path)
    assert not list(tmp_path.iterdir())
    other.put("a", {"x": torch.ones(2)})
    other.load(tmp_path)
    assert other.get("a") == {}
    state.put("a", {"x": torch.tensor(3), "deep": {"y": torch.ones(2, dtype=torch.float64)}})
    state.save(tmp_path)
    other.load(tmp_path)
    assert tree.same(other.get("a"), state.get("a"))
    other.rollback()
    assert tree.same(other.get("a"), state.get("a")), "what was loaded is committed"


def test_a_runs_snapshot_holds_it(tmp_path: Path) -> None:
    ran = toy.run_folder("fedavg", tmp_path, transforms=[CLIP])
    (file,) = (ran.folder.path / "snapshots").glob("round-000002/engine.safetensors")
    assert file.exists() and ran.rows[1]["transforms/clip"] != ran.rows[0]["transforms/clip"]
    plain = toy.run_folder("fedavg", tmp_path / "plain")
    assert not list((plain.folder.path / "snapshots").glob("*/engine*"))
