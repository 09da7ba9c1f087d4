"""Folds merged on their nodes: within a node through its shared memory, and once per node across (LIFL's hierarchy).

The tree is the one that the calls' numbers fix, so the sums have the same bits wherever their pieces were merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from rayfed import fold
from rayfed.engine.pool import Merging, Outcome


class LocatedFolds(NamedTuple):
    """A merged subtree: the reference of its object and the node that holds it."""

    ref: Any
    node: str


class NodeMerging(Merging):
    """Merges sibling subtrees of one node by an actor there; what is left when all calls have ended comes to the server.

    merge: (node, left object, right object) -> the merged object, made on that node. moved: bytes that came to the server.
    """

    def __init__(self, merge: Callable[[str, Any, Any], Any]):
        super().__init__()
        self.merge = merge
        self.remote: dict[tuple[int, int], LocatedFolds] = {}  # (level, index) -> a subtree on its node
        self.fetched: dict[tuple[int, int], fold.Folded] = {}  # the same, once it is here
        self.moved = 0
        self.calls = 0

    def add(self, number: int, out: Outcome) -> None:
        """Take the folds of call `number` and merge them with their siblings on the same node."""
        self.calls = max(self.calls, number + 1)
        level, index, folds = 0, number, out.folded
        while True:
            sibling = self.remote.get((level, index ^ 1))
            if sibling is None or sibling.node != folds.node:
                break
            del self.remote[level, index ^ 1]
            pair = (sibling.ref, folds.ref) if index & 1 else (folds.ref, sibling.ref)
            folds = LocatedFolds(self.merge(folds.node, *pair), folds.node)
            level, index = level + 1, index >> 1
        self.remote[level, index] = folds

    def lost(self) -> list[int]:
        """Fetch the subtrees; return the calls of those that died with their node or with the actor that merged them."""
        gone: list[int] = []
        for place, folds in sorted(self.remote.items()):
            try:
                found = ray.get(folds.ref)
            except RayError:
                level, index = place
                gone += range(index << level, min((index + 1) << level, self.calls))
                continue
            self.moved += fold.nbytes(found)
            self.fetched[place] = fold.from_numpy(found)
        self.remote.clear()
        return gone

    def result(self) -> fold.Folded:
        """Return all calls merged; {} if there was none."""
        for (level, index), folded in sorted(self.fetched.items()):
            self.merger.add(index, folded, level)
        return self.merger.result() or {}
