"""Snapshots count only when they are complete."""

from __future__ import annotations

import json
import os
import zlib

import numpy as np
import pytest

from rayfed.storage import snapshots
from rayfed.storage.atomic import Sum
from rayfed.storage.tree_files import save_tree


def written(folder, round, fill):
    hidden = snapshots.fill(folder, round, 1, fill)
    snapshots.seal(hidden, round, 1)
    return snapshots.publish(hidden, round)


def make(tmp_path, round):
    def fill(where):
        save_tree(where, "server", {"x": np.full(4, float(round))})
        (where / "more").mkdir()
        (where / "more" / "clients.json").write_text("{}")

    return written(tmp_path, round, fill)


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


def test_a_snapshot_stands_by_the_segments_that_it_leads_to(tmp_path):
    segments = tmp_path / "segments"
    segments.mkdir()
    for n in ("a", "b"):
        (segments / f"{n}.safetensors").write_bytes(n.encode() * 100)

    def fill(where):
        snapshots.write_segments(where, {n: Sum(100, zlib.crc32(n.encode() * 100)) for n in ("a", "b")})

    folder = tmp_path / "snapshots"
    where = written(folder, 5, fill)
    assert snapshots.find_damage(where, 5) is None and snapshots.damaged_segments(where) == {}
    (segments / "b.safetensors").write_bytes(b"b" * 99 + b"c")
    assert snapshots.find_damage(where, 5) == "segments/b.safetensors: it has a wrong checksum"
    (segments / "b.safetensors").write_bytes(b"b")
    assert snapshots.damaged_segments(where) == {segments / "b.safetensors": "it has 1 bytes instead of 100"}
    (segments / "a.safetensors").unlink()
    assert "segments/a.safetensors: it is missing" in snapshots.find_damage(where, 5)


def test_a_manifest_has_a_checksum_of_itself(tmp_path):
    where = make(tmp_path, 5)
    text = (where / "manifest.json").read_text()
    (where / "manifest.json").write_text(text.replace('"fence": 1', '"fence": 2'))
    assert "wrong checksum" in snapshots.find_damage(where, 5)


@pytest.mark.parametrize("harm", [b"{", b"[]", b'{"a": 1}'])
def test_no_segment_is_deleted_where_a_kept_snapshot_does_not_say_which_it_needs(tmp_path, harm):
    segments, folder = tmp_path / "segments", tmp_path / "snapshots"
    segments.mkdir()
    for name in ("round-000001-1", "round-000002-1"):
        (segments / f"{name}.safetensors").write_bytes(b"x")

    def fill(where):
        snapshots.write_segments(where, {"round-000002-1": Sum(1, zlib.crc32(b"x"))})

    old, _ = written(folder, 5, fill), written(folder, 6, fill)
    whole = (old / snapshots.SEGMENTS).read_bytes()
    (old / snapshots.SEGMENTS).write_bytes(harm)
    snapshots.collect_segments(folder, segments)
    assert len(list(segments.iterdir())) == 2
    (old / snapshots.SEGMENTS).write_bytes(whole)
    snapshots.collect_segments(folder, segments)
    assert [f.stem for f in segments.iterdir()] == ["round-000002-1"]
