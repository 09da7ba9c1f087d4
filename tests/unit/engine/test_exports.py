"""The folder of a run's models."""

from __future__ import annotations

from pathlib import Path

from rayfed.engine.exports import save_models
from rayfed.storage.tree_files import load_meta, load_tree
from tests import toy


def test_what_a_killed_export_left_goes_and_experts_are_written(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "half").write_text("x")
    for method in ("fedavg", "ifca"):
        ran = toy.simulate(method, rounds=1)
        save_models(tmp_path / "model", ran.fed.method, ran.fed.task, ran.state)
        names = {p.name for p in (tmp_path / "model").glob("*.safetensors")}
        assert names and not (tmp_path / "model" / "half").exists()
        assert names == {"model.safetensors"} if method == "fedavg" else "expert-0.safetensors" in names
    assert load_tree(tmp_path / "model", "expert-0") and load_meta(tmp_path / "model", "expert-0")["classes"] == 4
