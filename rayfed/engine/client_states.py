"""Client states: versioned rows, owned by the server side, keyed by client id.

A row is a place in a block: what one call returned, leaves (k, ...), or a segment on disk. Rows written in a round are
provisional until it commits. Segments are append-only; a snapshot writes only rows touched since the last one, some others
to make room, and a manifest of where every client's row is. Where states take more than `memory_limit`, blocks whose rows are
all on disk are dropped, the oldest first; their rows are read from the segments when their clients are asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rayfed import tree
from rayfed.engine.pool import Pool
from rayfed.storage import snapshots as snapshot_files
from rayfed.storage.atomic import Sum, make_folder
from rayfed.storage.tree_files import count_rows, load_rows, load_tree, save_tree
from rayfed.tree import Tree

MEMORY_SHARE = 0.15  # half of what Ray's object store takes of a machine's memory


class Place(NamedTuple):
    """Where a client's state is: a row of a block."""

    block: int
    row: int


class Segment(NamedTuple):
    """A block on disk."""

    folder: Path
    name: str


class ClientStates:
    """The rows of one run; blocks are handles of `pool`, or segments."""

    def __init__(self, pool: Pool, memory_limit: float | None = None, family: np.ndarray | None = None):
        """memory_limit: bytes of states that stay in memory though they are on disk too, by default MEMORY_SHARE of the machine's
        memory; family: (N,) the number of each client's family, since states of one family alone can be rows of one block; None
        where there is one."""
        self.pool, self.memory_limit, self.family = pool, memory_limit, family
        self._empty()

    def _empty(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.places: dict[int, Place] = {}
        self.pending: dict[int, Place] = {}
        self.saved: dict[int, tuple[str, int]] = {}  # client -> (segment, row) of the newest version on disk
        self.dirty: set[int] = set()
        self._live: dict[int, set[int]] = {}  # block -> clients whose committed state is in it
        self._block_rows: dict[int, int] = {}  # block in memory -> its rows
        self._segment_rows: dict[str, int] = {}  # segment -> its rows
        self._segment_sums: dict[str, Sum] = {}  # segment -> size and checksum of its file
        self._rewritten: list[int] = []  # clients that the newest snapshot writes though they were not touched
        self._places_written: dict[
            int, tuple[str, int]
        ] = {}  # what `saved` is once the newest snapshot has been committed
        self._segments = Path()
        self._state_bytes = 0.0  # bytes of one state, known once some were on disk
        self._next = 0

    def lookup(self, clients: Sequence[int]) -> tuple[tuple[Any, ...], tuple[tuple[int, int] | None, ...]]:
        """Find where clients' states are: (handles, per client (number of the handle, row), None without a state)."""
        found = {c: p for c in clients if (p := self.pending.get(c, self.places.get(c)))}
        on_disk = [c for c, p in found.items() if isinstance(self.blocks[p.block], Segment)]
        handles = {p.block: self.blocks[p.block] for c, p in found.items()}
        if on_disk:
            handles = {b: h for b, h in handles.items() if not isinstance(h, Segment)} | {
                -1: self.pool.put(self._stacked(on_disk))
            }
            found |= {c: Place(-1, i) for i, c in enumerate(on_disk)}
        number = {b: i for i, b in enumerate(handles)}
        at = {c: (number[p.block], p.row) for c, p in found.items()}
        return tuple(handles.values()), tuple(map(at.get, clients))

    def write(self, clients: Sequence[int], handle: Any) -> None:
        """Take new states of `clients`, row by row in the block behind `handle`; provisional."""
        block = self._add(handle, len(clients))
        self.pending.update({c: Place(block, i) for i, c in enumerate(clients)})

    def _add(self, handle: Any, rows: int) -> int:
        self._next += 1
        self.blocks[self._next], self._live[self._next], self._block_rows[self._next] = handle, set(), rows
        return self._next

    def _move(self, places: dict[int, Place]) -> None:
        """Note where these clients' committed states are from now on."""
        for c, p in places.items():
            if c in self.places:
                self._live[self.places[c].block].discard(c)
            self._live[p.block].add(c)
        self.places.update(places)

    def commit(self) -> None:
        """Make the round's rows the states, and drop blocks that nothing points to."""
        self._move(self.pending)
        self.dirty |= self.pending.keys()
        self.pending = {}
        self._collect()

    def rollback(self) -> None:
        """Forget the round's rows."""
        self.pending = {}
        self._collect()

    def _collect(self) -> None:
        written = {p.block for p in self.pending.values()}
        for b in [b for b, live in self._live.items() if not live and b not in written]:
            del self.blocks[b], self._live[b], self._block_rows[b]
        held = [b for b, h in self.blocks.items() if not isinstance(h, Segment)]
        if len(held) > 64 and len(held) > len(self.places) // 4:
            # Many blocks with few live rows each: rewrite the live rows as one.
            for live in self._by_family(sorted(c for b in held for c in self._live[b])):
                block = self._add(self.pool.put(self._stacked(live)), len(live))
                self._move({c: Place(block, i) for i, c in enumerate(live)})
            self._collect()

    def _by_family(self, clients: Sequence[int]) -> list[Sequence[int]]:
        """Cut clients into those of each family, in the order of the families; nothing of nobody."""
        if self.family is None:
            return [clients] if clients else []
        found: dict[int, list[int]] = {}
        for c in clients:
            found.setdefault(int(self.family[c]), []).append(c)
        return [found[number] for number in sorted(found)]

    def get(self, client: int) -> Tree | None:
        """Fetch one client's state as NumPy arrays, None if it has none."""
        known = client in self.pending or client in self.places
        return tree.row(self._stacked([client]), 0) if known else None

    def _stacked(self, clients: Sequence[int]) -> Tree:
        """Stack the states of clients that have one, leaves (n, ...); each block is fetched once."""
        by_block: dict[int, list[tuple[int, int]]] = {}
        for i, c in enumerate(clients):
            p = self.pending.get(c) or self.places[c]
            by_block.setdefault(p.block, []).append((i, p.row))
        out: list[Any] = [None] * len(clients)
        for b, at in by_block.items():
            block = self.blocks[b]
            on_disk = isinstance(block, Segment)
            value = load_rows(block.folder, block.name, [r for _, r in at]) if on_disk else self.pool.get(block)
            for n, (i, r) in enumerate(at):
                out[i] = tree.row(value, n if on_disk else r)
        return _stack(out)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save(self, snapshot: Path, segments: Path, name: str) -> None:
        """Write touched rows to a new segment and, where any client has a state, `clients.json` into the snapshot's folder.

        Nothing is synced: that is up to `rayfed.storage.snapshots.seal`. `snapshot_begun` and `snapshot_committed` follow.
        """
        places, self._segments = dict(self.saved), segments
        dirty = self.dirty | self.pending.keys()  # the round that is being committed belongs to it
        self._rewritten = self._clients_to_rewrite(dirty)
        written = 0
        for number, to_write in enumerate(self._by_family(sorted([*dirty, *self._rewritten]))):
            make_folder(segments)
            states, segment = self._stacked(to_write), snapshot_files.nth_segment(name, number)
            written += tree.nbytes(states)
            self._segment_sums[segment] = Sum.of_file(save_tree(segments, segment, states, sync=False))
            self._segment_rows[segment] = len(to_write)
            places.update({c: (segment, i) for i, c in enumerate(to_write)})
        if written:
            self._state_bytes = written / len({*dirty, *self._rewritten})
        if places:
            (snapshot / "clients.json").write_text(json.dumps(dict(sorted(places.items()))), encoding="utf-8")
            used = {segment for segment, _ in places.values()}
            snapshot_files.write_segments(snapshot, {s: self._segment_sums[s] for s in sorted(used)})
        self._places_written = places

    def _clients_to_rewrite(self, dirty: set[int]) -> list[int]:
        """Choose clients outside of `dirty` whose segments have so few live rows that it is better to write these again: segments,
        emptiest first, until there are at most twice as many rows on disk as clients."""
        live: dict[str, list[int]] = {}
        for c, (segment, _) in self.saved.items():
            if c not in dirty:
                live.setdefault(segment, []).append(c)
        self._segment_rows = {s: n for s, n in self._segment_rows.items() if s in live}
        self._segment_sums = {s: known for s, known in self._segment_sums.items() if s in live}
        spare = sum(self._segment_rows.values()) + len(dirty) - 2 * len(self.saved.keys() | dirty)
        out: list[int] = []
        for s in sorted(live, key=lambda s: (len(live[s]) / self._segment_rows[s], s)):
            if spare <= 0:
                break
            out += live[s]
            spare -= self._segment_rows[s] - len(live[s])
        return out

    def snapshot_begun(self) -> None:
        """Note that the round is committed whose snapshot `save` has filled: what is written from now on belongs to the next one."""
        self.dirty = set()

    def snapshot_committed(self) -> None:
        """Note that the snapshot that `save` filled lasts. Rounds may have been committed since it began."""
        self.saved = self._places_written
        self._evict([c for c in self._rewritten if isinstance(self.blocks[self.places[c].block], Segment)])
        held = {
            b: n * self._state_bytes for b, n in self._block_rows.items() if not isinstance(self.blocks[b], Segment)
        }
        over = sum(held.values()) - self._limit()
        for b, size in sorted(held.items()):
            if over <= 0:
                break
            self._evict([c for c in self._live[b] if c not in self.dirty])
            over -= size
        self._collect()

    def _limit(self) -> float:
        import psutil

        return MEMORY_SHARE * psutil.virtual_memory().total if self.memory_limit is None else self.memory_limit

    def _evict(self, clients: Sequence[int]) -> None:
        """Keep the states of these clients only where they were saved, no longer in memory."""
        known = {h.name: b for b, h in self.blocks.items() if isinstance(h, Segment)}
        moved = {}
        for c in clients:
            name, row = self.saved[c]
            if name not in known:
                known[name] = self._add(Segment(self._segments, name), 0)
            moved[c] = Place(known[name], row)
        self._move(moved)

    def load(self, snapshot: Path, segments: Path) -> None:
        """Load the states that a snapshot's manifest names."""
        self._empty()
        manifest = snapshot / "clients.json"
        places = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        self.saved = {int(c): (p[0], p[1]) for c, p in places.items()}
        self._segments, self._segment_sums = segments, snapshot_files.read_segments(snapshot)
        clients: dict[str, list[int]] = {}
        for c, (segment, _) in self.saved.items():
            clients.setdefault(segment, []).append(c)
        self._segment_rows = {s: count_rows(segments, s) for s in sorted(clients)}
        fits = sum((segments / f"{s}.safetensors").stat().st_size for s in clients) <= self._limit()
        for s, rows in self._segment_rows.items():
            block = self._add(self.pool.put(load_tree(segments, s)) if fits else Segment(segments, s), rows)
            self._move({c: Place(block, self.saved[c][1]) for c in clients[s]})


def _stack(rows: Sequence[Tree]) -> Tree:
    return tree.map(
        lambda *xs: tree.BF16(np.stack([x.bits for x in xs])) if isinstance(xs[0], tree.BF16) else np.stack(xs), *rows
    )
