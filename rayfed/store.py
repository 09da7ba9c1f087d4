"""Client states: versioned rows, owned by the server side, keyed by client id.

A row is a place in a block (what one call returned, leaves (k, ...)). Rows written in a round are provisional until it
commits. On disk a state lives in an append-only segment; a snapshot writes only rows touched since the last one and a
manifest of where every client's row is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rayfed import tree
from rayfed.pool import Pool
from rayfed.snapshot import load_tree, save_tree
from rayfed.tree import Tree


class Place(NamedTuple):
    block: int
    row: int


class ClientStore:
    """The rows of one run; blocks are handles of `pool`."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.blocks: dict[int, Any] = {}
        self.places: dict[int, Place] = {}
        self.pending: dict[int, Place] = {}
        self.saved: dict[int, tuple[str, int]] = {}  # client -> (segment, row) of the newest version on disk
        self.dirty: set[int] = set()
        self._next = 0

    def lookup(self, clients: Sequence[int]) -> tuple[tuple[Any, ...], tuple[tuple[int, int] | None, ...]]:
        """(handles, per client (number of the handle, row) or None for a client without a state)."""
        found = [self.pending.get(c, self.places.get(c)) for c in clients]
        blocks = list(dict.fromkeys(p.block for p in found if p))
        return tuple(self.blocks[b] for b in blocks), tuple(
            (blocks.index(p.block), p.row) if p else None for p in found
        )

    def write(self, clients: Sequence[int], handle: Any) -> None:
        """New states of `clients`, row by row in the block behind `handle`; provisional."""
        block = self._add(handle)
        self.pending.update({c: Place(block, i) for i, c in enumerate(clients)})

    def _add(self, handle: Any) -> int:
        self._next += 1
        self.blocks[self._next] = handle
        return self._next

    def commit(self) -> None:
        """The round's rows become the states; blocks that nothing points to are let go."""
        self.places.update(self.pending)
        self.dirty |= self.pending.keys()
        self.pending = {}
        self._collect()

    def rollback(self) -> None:
        """Forget the round's rows."""
        self.pending = {}
        self._collect()

    def _collect(self) -> None:
        used: dict[int, list[int]] = {}
        for c, p in self.places.items():
            used.setdefault(p.block, []).append(c)
        self.blocks = {b: h for b, h in self.blocks.items() if b in used}
        if len(self.blocks) > 64 and len(self.blocks) > len(self.places) // 4:
            # Many blocks with few live rows each: rewrite the live rows together.
            live = sorted(self.places)
            handle = self.pool.put(_stack([self.get(c) for c in live]))
            block = self._add(handle)
            self.places = {c: Place(block, i) for i, c in enumerate(live)}
            self.blocks = {block: handle}

    def get(self, client: int) -> Tree | None:
        """One client's state as NumPy arrays, None if it has none."""
        p = self.pending.get(client, self.places.get(client))
        return None if p is None else tree.row(self.pool.get(self.blocks[p.block]), p.row)

    def save(self, snapshot: Path, segments: Path, name: str) -> None:
        """Write touched rows to a new segment and the manifest `clients.json` into the snapshot's folder."""
        places = dict(self.saved)
        dirty = sorted(self.dirty | self.pending.keys())  # the round that is being committed belongs to it
        if dirty:
            segments.mkdir(exist_ok=True)
            save_tree(segments, name, _stack([self.get(c) for c in dirty]))
            places.update({c: (name, i) for i, c in enumerate(dirty)})
        (snapshot / "clients.json").write_text(json.dumps({str(c): list(p) for c, p in sorted(places.items())}))
        self._writing = places

    def saved_now(self) -> None:
        """The snapshot that `save` wrote into has been committed."""
        self.saved, self.dirty = self._writing, set()

    def load(self, snapshot: Path, segments: Path) -> None:
        """The states that a snapshot's manifest names."""
        self.places, self.pending, self.blocks, self.dirty = {}, {}, {}, set()
        manifest = snapshot / "clients.json"
        self.saved = (
            {int(c): (p[0], p[1]) for c, p in json.loads(manifest.read_text()).items()} if manifest.exists() else {}
        )
        for segment in sorted({s for s, _ in self.saved.values()}):
            block = self._add(self.pool.put(load_tree(segments, segment)))
            self.places.update({c: Place(block, r) for c, (s, r) in self.saved.items() if s == segment})


def collect_segments(snapshots: Path, segments: Path) -> None:
    """Delete segments that no kept snapshot's manifest names."""
    if not segments.exists():
        return
    used = {p[0] for m in snapshots.glob("round-*/clients.json") for p in json.loads(m.read_text()).values()}
    for f in segments.iterdir():
        if f.stem.split(".")[0] not in used:
            f.unlink(missing_ok=True)


def _stack(rows: Sequence[Tree]) -> Tree:
    return tree.map(
        lambda *xs: tree.BF16(np.stack([x.bits for x in xs])) if isinstance(xs[0], tree.BF16) else np.stack(xs), *rows
    )
