"""What the engine itself carries from round to round, beside the method's state and the clients': of transforms, of rules of
aggregation. It is in every snapshot; what a round changes is provisional until the round commits."""

from __future__ import annotations

from pathlib import Path

from rayfed import tree
from rayfed.storage.tree_files import load_tree, save_tree
from rayfed.tree import Tree

FILE = "engine"  # in a snapshot, where there is anything to keep


class EngineState:
    """Trees by the name of who keeps them."""

    def __init__(self) -> None:
        self._committed: dict[str, Tree] = {}
        self._now: dict[str, Tree] = {}

    def get(self, name: str) -> Tree:
        """Return what was kept last under a name; {} where nothing was."""
        return self._now.get(name, {})

    def put(self, name: str, state: Tree) -> None:
        """Keep a tree under a name, in the place of what was there; provisional."""
        self._now = {**self._now, name: state}

    def commit(self) -> None:
        """Make what the round has kept the state."""
        self._committed = self._now

    def rollback(self) -> None:
        """Forget what the round has kept."""
        self._now = self._committed

    def save(self, snapshot: Path) -> None:
        """Write the state, that of the round being committed, into a snapshot's folder. Nothing is synced."""
        if self._now:
            save_tree(snapshot, FILE, tree.to_numpy(self._now), sync=False)

    def load(self, snapshot: Path) -> None:
        """Load the state of a snapshot."""
        there = (snapshot / f"{FILE}.safetensors").exists()
        self._committed = self._now = dict(tree.from_numpy(load_tree(snapshot, FILE))) if there else {}
