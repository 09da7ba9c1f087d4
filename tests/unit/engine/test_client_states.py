"""Client states: provisional rows, commit and rollback, segments on disk, and blocks that do not pile up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.engine.client_states import ClientStates, Segment
from rayfed.engine.pool import LocalPool
from rayfed.storage.snapshots import collect_segments, prune
from rayfed.storage.tree_files import count_rows
from rayfed.tree import BF16
from tests import toy


def block(*values: float) -> tree.Tree:
    """A block of one row per value, as a call returns it."""
    v = np.asarray(values)
    return {"w": np.stack([v, 10 * v], 1), "deep": {"n": v.astype(np.int32)}}


def value(store: ClientStates, client: int) -> float | None:
    got = store.get(client)
    if got is None:
        return None
    assert got["w"].tolist() == [got["deep"]["n"], 10 * got["deep"]["n"]]
    return float(got["w"][0])


def values(store: ClientStates, *clients: int) -> list[float | None]:
    return [value(store, c) for c in clients]


@pytest.fixture
def store() -> ClientStates:
    return ClientStates(LocalPool())


class Disk:
    """A run folder's worth of snapshots and segments."""

    def __init__(self, path: Path):
        self.snapshots, self.segments = path / "snapshots", path / "segments"

    def save(self, store: ClientStates, round: int, commit: bool = True, lasts: bool = True) -> None:
        where = self.snapshots / f"round-{round:06d}"
        where.mkdir(parents=True)
        store.save(where, self.segments, f"round-{round:06d}-1")
        if commit:
            store.commit()
            store.snapshot_begun()
        if commit and lasts:
            store.snapshot_committed()

    def load(self, round: int) -> ClientStates:
        made = ClientStates(LocalPool())
        made.load(self.snapshots / f"round-{round:06d}", self.segments)
        return made

    def manifest(self, round: int) -> dict[str, Any]:
        return json.loads((self.snapshots / f"round-{round:06d}" / "clients.json").read_text())

    def files(self) -> list[str]:
        return sorted(f.name.split(".")[0] for f in self.segments.iterdir()) if self.segments.exists() else []


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_rows_are_provisional_until_the_round_commits(store: ClientStates) -> None:
    store.write((3, 1), block(30, 10))
    assert values(store, 1, 3, 2) == [10, 30, None]  # the round itself sees them
    assert store.places == {} and set(store.pending) == {1, 3}
    store.commit()
    assert values(store, 1, 3) == [10, 30] and store.pending == {} and set(store.places) == {1, 3}


def test_rollback_forgets_the_round_and_nothing_else(store: ClientStates) -> None:
    store.write((1, 2), block(1, 2))
    store.commit()
    store.write((2, 3), block(20, 30))
    assert values(store, 1, 2, 3) == [1, 20, 30]
    store.rollback()
    assert values(store, 1, 2, 3) == [1, 2, None]
    assert len(store.blocks) == 1  # the block of the lost round is let go
    store.commit()
    assert values(store, 1, 2, 3) == [1, 2, None]


def test_the_last_write_of_a_round_counts(store: ClientStates) -> None:
    store.write((1,), block(1))
    store.write((1, 2), block(11, 2))
    assert values(store, 1, 2) == [11, 2]
    store.commit()
    assert values(store, 1, 2) == [11, 2] and len(store.blocks) == 1


def test_lookup_names_blocks_once_and_missing_clients_none(store: ClientStates) -> None:
    a, b = block(1, 2, 3), block(40, 50)
    store.write((1, 2, 3), a)
    store.commit()
    store.write((4, 2), b)
    handles, places = store.lookup((2, 9, 3, 4, 1))
    assert [h is x for h, x in zip(handles, (b, a), strict=True)] == [True, True]
    assert places == ((0, 1), None, (1, 2), (0, 0), (1, 0))
    assert store.lookup((8, 9)) == ((), (None, None))
    assert store.lookup(()) == ((), ())


def test_blocks_that_nothing_points_to_are_dropped(store: ClientStates) -> None:
    for i in range(30):
        store.write((1, 2), block(i, i + 100))
        store.commit()
        assert len(store.blocks) == 1
    store.write((1,), block(7))
    store.commit()
    assert len(store.blocks) == 2 and values(store, 1, 2) == [7, 129]


def test_many_small_blocks_are_rewritten_together(store: ClientStates) -> None:
    for c in range(200):
        store.write((c,), block(c))
        if c % 10 == 9:
            store.commit()
            assert len(store.blocks) <= 64 + 10
    assert values(store, *range(200)) == list(range(200))
    handles, places = store.lookup(range(200))
    assert len(handles) == len(store.blocks) and None not in places


def test_rewriting_moves_no_bit_and_keeps_what_is_dirty(store: ClientStates, disk: Disk) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(65, 2)).astype(np.float32)
    for c in range(65):
        store.write((c,), {"x": rows[c : c + 1]})
    store.commit()
    assert len(store.blocks) == 1
    assert all(store.get(c)["x"].tobytes() == rows[c].tobytes() for c in range(65))
    disk.save(store, 1)
    assert len(disk.manifest(1)) == 65


def test_few_blocks_of_many_clients_stay_as_they_are(store: ClientStates) -> None:
    for b in range(70):
        store.write(range(8 * b, 8 * b + 8), block(*range(8 * b, 8 * b + 8)))
    store.commit()
    assert len(store.blocks) == 70 and value(store, 557) == 557


def test_bfloat16_states(store: ClientStates, disk: Disk) -> None:
    bits = np.arange(6, dtype=np.uint16).reshape(3, 2)
    store.write((5, 6, 7), {"x": BF16(bits)})
    store.commit()
    got = store.get(6)["x"]
    assert isinstance(got, BF16) and got.bits.tolist() == [2, 3]
    disk.save(store, 1)
    assert disk.load(1).get(7)["x"].bits.tolist() == [4, 5]


# -- on disk -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_writes_only_what_was_touched(store: ClientStates, disk: Disk) -> None:
    store.write((1, 2, 3), block(1, 2, 3))
    disk.save(store, 1)
    store.write((2,), block(20))
    disk.save(store, 2)
    assert disk.files() == ["round-000001-1", "round-000002-1"]
    assert disk.manifest(1) == {"1": ["round-000001-1", 0], "2": ["round-000001-1", 1], "3": ["round-000001-1", 2]}
    assert disk.manifest(2) == {**disk.manifest(1), "2": ["round-000002-1", 0]}
    assert values(disk.load(2), 1, 2, 3, 4) == [1, 20, 3, None]
    assert values(disk.load(1), 1, 2, 3) == [1, 2, 3]  # an older snapshot stays what it was


def test_rounds_between_two_snapshots_are_all_in_the_next(store: ClientStates, disk: Disk) -> None:
    store.write((5,), block(5))
    store.commit()
    store.write((6, 5), block(6, 55))
    store.commit()
    store.write((7,), block(7))  # of the round that is being committed
    disk.save(store, 3)
    assert values(disk.load(3), 5, 6, 7) == [55, 6, 7] and len(disk.files()) == 1


def test_rows_of_a_lost_round_are_not_written(store: ClientStates, disk: Disk) -> None:
    store.write((1,), block(1))
    store.commit()
    store.write((1, 2), block(11, 22))
    store.rollback()
    disk.save(store, 1)
    assert values(disk.load(1), 1, 2) == [1, None]


def test_a_snapshot_that_did_not_commit_is_written_again(store: ClientStates, disk: Disk) -> None:
    store.write((1,), block(1))
    store.commit()
    disk.save(store, 1, commit=False)  # the folder failed before the snapshot counted
    assert store.saved == {} and store.dirty == {1}
    disk.save(store, 2)
    assert disk.manifest(2) == {"1": ["round-000002-1", 0]} and store.dirty == set()


def test_nothing_touched_writes_no_segment(store: ClientStates, disk: Disk) -> None:
    disk.save(store, 1)
    assert disk.files() == [] and not list(disk.snapshots.rglob("clients.json"))
    assert not disk.load(1).saved
    store.write((1,), block(1))
    disk.save(store, 2)
    disk.save(store, 3)
    assert disk.files() == ["round-000002-1"] and disk.manifest(3) == disk.manifest(2)


def test_a_loaded_store_goes_on(store: ClientStates, disk: Disk) -> None:
    store.write(range(4), block(0, 1, 2, 3))
    disk.save(store, 1)
    store.write((3, 0), block(33, 100))
    disk.save(store, 2)
    again = disk.load(2)
    again.write((1,), block(11))
    disk.save(again, 3)
    last = disk.load(3)
    assert values(last, 0, 1, 2, 3) == [100, 11, 2, 33]
    assert disk.manifest(3) == {
        "0": ["round-000002-1", 0], "1": ["round-000003-1", 0], "2": ["round-000001-1", 2], "3": ["round-000002-1", 1],
    }  # fmt: skip
    assert len(last.blocks) == 3


def test_load_forgets_what_was_there(store: ClientStates, disk: Disk) -> None:
    store.write((1,), block(1))
    disk.save(store, 1)
    other = ClientStates(LocalPool())
    other.write((1, 2), block(9, 9))
    other.commit()
    other.write((3,), block(9))
    other.load(disk.snapshots / "round-000001", disk.segments)
    assert values(other, 1, 2, 3) == [1, None, None] and other.dirty == set()
    empty = disk.snapshots / "round-000009"
    empty.mkdir()
    other.load(empty, disk.segments)  # a method without client states has no manifest
    assert other.places == {} and other.saved == {}


def test_segments_without_a_snapshot_are_collected(store: ClientStates, disk: Disk) -> None:
    collect_segments(disk.snapshots, disk.segments)  # no such folder yet
    for r, c in ((1, (1, 2)), (2, (1,)), (3, (2,))):
        store.write(c, block(*[10.0 * r + i for i in c]))
        disk.save(store, r)
    (disk.segments / "round-000009-4.safetensors").write_bytes(b"left behind by a process that died")
    collect_segments(disk.snapshots, disk.segments)
    assert disk.files() == ["round-000001-1", "round-000002-1", "round-000003-1"]
    for r in (1, 2):
        (disk.snapshots / f"round-00000{r}" / "segments.json").unlink()
    collect_segments(disk.snapshots, disk.segments)
    assert disk.files() == ["round-000002-1", "round-000003-1"]
    assert values(disk.load(3), 1, 2) == [21, 32]


def test_many_clients_on_disk(store: ClientStates, disk: Disk) -> None:
    n = 3000
    for at in range(0, n, 50):
        store.write(range(at, at + 50), block(*range(at, at + 50)))
    disk.save(store, 1)
    some = list(range(0, n, 7))
    store.write(some, block(*[-c for c in some]))
    disk.save(store, 2)
    back = disk.load(2)
    assert values(back, *range(n)) == [-c if c % 7 == 0 else c for c in range(n)]
    assert len(back.blocks) == 2 and len(back.lookup(range(n))[0]) == 2


def segments_in(store: ClientStates) -> int:
    return sum(isinstance(h, Segment) for h in store.blocks.values())


@pytest.mark.parametrize("room", [0.0, 300.0, None])
def test_states_beyond_the_room_are_read_from_the_segments(disk: Disk, room: float | None) -> None:
    """Any history of writes, lost rounds, snapshots and resumes gives the newest states, wherever they are."""
    rng, n = np.random.default_rng(1), 40
    store, want, saved = ClientStates(LocalPool(), room), dict[int, float](), dict[int, float]()
    for r in range(1, 61):
        ids = rng.permutation(n)[:6].tolist()
        handles, at = store.lookup(ids)
        found = [None if p is None else float(tree.row(handles[p[0]], p[1])["w"][0]) for p in at]
        assert found == [want.get(c) for c in ids]
        store.write(ids[:3], block(*[100.0 * r + c for c in ids[:3]]))
        store.write(ids[3:], block(*[100.0 * r + c for c in ids[3:]]))
        if r % 7 == 0:
            store.rollback()
            continue
        want |= {c: 100.0 * r + c for c in ids}
        if r % 3 == 0:
            disk.save(store, r)
            collect_segments(disk.snapshots, disk.segments)
            saved = dict(want)
            prune(disk.snapshots, 2)
        else:
            store.commit()
        if r % 20 == 0:
            store, want = ClientStates(LocalPool(), room), dict(saved)
            store.load(max(disk.snapshots.iterdir()), disk.segments)
        assert values(store, *range(n)) == [want.get(c) for c in range(n)]
        if room == 0.0 and r % 3 == 0:
            assert segments_in(store) == len(store.blocks)
    assert (segments_in(store) == 0) == (room is None)


@pytest.mark.parametrize("room", [0.0, 300.0, None])
def test_rounds_go_on_while_a_snapshot_is_written(disk: Disk, room: float | None) -> None:
    """What they write is the state, and belongs to the next snapshot, wherever the one under way puts what was there before."""
    rng, n = np.random.default_rng(2), 40
    store, want, saved = ClientStates(LocalPool(), room), dict[int, float](), dict[int, float]()
    for r in range(1, 61):
        ids = rng.permutation(n)[:8].tolist()
        store.write(ids, block(*[100.0 * r + c for c in ids]))
        want |= {c: 100.0 * r + c for c in ids}
        if r % 4 == 0:
            disk.save(store, r, lasts=False)
            saved = dict(want)
        else:
            store.commit()
        if r % 4 == 3 and saved:  # after three rounds more
            store.snapshot_committed()
            prune(disk.snapshots, 1)
            collect_segments(disk.snapshots, disk.segments)
            back = disk.load(r - 3)
            assert values(back, *range(n)) == [saved.get(c) for c in range(n)]
        assert values(store, *range(n)) == [want.get(c) for c in range(n)]
    assert (segments_in(store) > 0) == (room is not None)


def test_what_is_on_disk_is_at_most_twice_the_states(disk: Disk) -> None:
    rng, store, n = np.random.default_rng(0), ClientStates(LocalPool(), 0.0), 100
    for r in range(1, 81):
        ids = rng.permutation(n)[:10].tolist()
        store.write(ids, block(*[r + c / 1000 for c in ids]))
        disk.save(store, r)
        prune(disk.snapshots, 1)
        collect_segments(disk.snapshots, disk.segments)
        rows = {s: count_rows(disk.segments, s) for s in disk.files()}
        assert sum(rows.values()) <= 2 * len(store.places)
        assert rows[f"round-{r:06d}-1"] <= 30  # what was touched, and at most twice as many to make room


# -- under a method ----------------------------------------------------------------------------------------------------


def test_states_follow_their_clients_through_cohorts_and_rounds() -> None:
    """local_only: a client's state is what all its visits made of it, whatever cohort it was in."""
    runs = [toy.simulate("local_only", rounds=4, resources={"cohort": k}, pool=toy.SimPool(3, k)) for k in (1, 3)]
    a, b = (r.clients() for r in runs)
    assert a.keys() == b.keys() and len(a) > 7
    assert all(tree.same(a[c], b[c]) for c in a)


def test_a_run_whose_states_are_on_disk_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"rounds": 5, "storage": {"snapshot_every": 2}}
    memory = toy.run_folder("scaffold", tmp_path / "memory", **more)
    monkeypatch.setattr(ClientStates, "_limit", lambda self: 0.0)
    disk = toy.run_folder("scaffold", tmp_path / "disk", **more)
    assert disk.rows == memory.rows and tree.same(disk.state, memory.state)
    assert disk.clients.keys() == memory.clients.keys() and len(memory.clients) > 7
    assert all(tree.same(disk.clients[c], memory.clients[c]) for c in memory.clients)


def test_a_round_that_breaks_leaves_the_states() -> None:
    done = toy.simulate("local_only", rounds=1)
    before = done.clients()
    fed = done.fed
    fed.begin(2)
    fed.method.round(done.state, fed, fed.task)
    assert any(not tree.same(tree.from_numpy(fed.states.get(c)), before.get(str(c), {})) for c in fed.states.pending)
    fed.states.rollback()
    assert done.clients().keys() == before.keys() and all(tree.same(done.clients()[c], before[c]) for c in before)
