"""Folds merged where they lie: within a node through its shared memory, and once per node across (LIFL's hierarchy).

The tree is the one that the calls' numbers fix, so the sums have the same bits wherever their pieces were merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from rayfed import fold
from rayfed.engine.pool import Merging, Outcome


class Lies(NamedTuple):
    """A merged subtree: its object and the node that holds it."""

    ref: Any
    node: str


class NodeMerging(Merging):
    """Sibling subtrees of one node are merged by an actor there; what is left when all calls have ended comes to the server.

    merge: (node, left object, right object) -> the merged object, made on that node.
    """

    def __init__(self, merge: Callable[[str, Any, Any], Any]):
        super().__init__()
        self.merge = merge
        self.there: dict[tuple[int, int], Lies] = {}  # (level, index) -> where it lies
        self.here: dict[tuple[int, int], fold.Folded] = {}
        self.moved = 0
        self.calls = 0

    def add(self, number: int, out: Outcome) -> None:
        self.calls = max(self.calls, number + 1)
        level, index, lies = 0, number, out.folded
        while True:
            other = self.there.get((level, index ^ 1))
            if other is None or other.node != lies.node:
                break
            del self.there[level, index ^ 1]
            pair = (other.ref, lies.ref) if index & 1 else (lies.ref, other.ref)
            lies = Lies(self.merge(lies.node, *pair), lies.node)
            level, index = level + 1, index >> 1
        self.there[level, index] = lies

    def lost(self) -> list[int]:
        """Brings the subtrees here; those that died with their node or with the actor that merged them must be run again."""
        gone: list[int] = []
        for place, lies in sorted(self.there.items()):
            try:
                found = ray.get(lies.ref)
            except RayError:
                level, index = place
                gone += range(index << level, min((index + 1) << level, self.calls))
                continue
            self.moved += fold.nbytes(found)
            self.here[place] = fold.from_numpy(found)
        self.there.clear()
        return gone

    def result(self) -> fold.Folded:
        for (level, index), folded in sorted(self.here.items()):
            self.merger.add(index, folded, level)
        return self.merger.result() or {}
