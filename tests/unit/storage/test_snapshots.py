"""Snapshots count only when they are complete."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from rayfed.storage import snapshots
from rayfed.storage.tree_files import save_tree


def make(tmp_path, round):
    def fill(where):
        save_tree(where, "server", {"x": np.full(4, float(round))})
        (where / "more").mkdir()
        (where / "more" / "clients.json").write_text("{}")

    return snapshots.publish(snapshots.stage(tmp_path, round, 1, fill), round)


def test_manifest_names_every_file(tmp_path):
    where = make(tmp_path, 5)
    manifest = json.loads((where / "manifest.json").read_text())
    assert where.name == "round-000005"
    assert (manifest["round"], manifest["fence"], manifest["rows"]) == (5, 1, 5)
    assert set(manifest["files"]) == {"server.safetensors", "more/clients.json"}
    assert snapshots.find_damage(where, 5) is None


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda d: (d / "manifest.json").unlink(), "no manifest"),
        (lambda d: (d / "manifest.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "server.safetensors").unlink(), "server.safetensors: it is missing"),
        (lambda d: (d / "more" / "clients.json").write_text("{} "), "3 bytes instead of 2"),
        (lambda d: (d / "more" / "clients.json").write_text("[]"), "wrong checksum"),
    ],
)
def test_damage_is_found(tmp_path, harm, says):
    where = make(tmp_path, 5)
    harm(where)
    assert says in snapshots.find_damage(where, 5)


def test_prune_keeps_the_newest(tmp_path):
    for r in (5, 10, 15):
        make(tmp_path, r)
    snapshots.prune(tmp_path, 2)
    assert [r for r, _ in snapshots.list_snapshots(tmp_path)] == [15, 10]
    snapshots.prune(tmp_path, 0)
    assert [r for r, _ in snapshots.list_snapshots(tmp_path)] == [15]
    assert os.listdir(tmp_path) == ["round-000015"]
