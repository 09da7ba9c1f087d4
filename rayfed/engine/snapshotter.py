"""When a run's snapshot is due, what is in it, and what follows once it lasts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rayfed import tree
from rayfed.engine.engine_state import EngineState
from rayfed.storage import snapshots
from rayfed.storage.tree_files import save_tree

if TYPE_CHECKING:
    from rayfed.engine.client_states import ClientStates
    from rayfed.storage.run_folder import RunFolder
    from rayfed.tree import Tree

SHARE = 0.02  # of the time since the last snapshot that one may take, where `snapshot_every` is `auto`
LONGEST_S = 600.0  # from one to the next, whatever it takes


class Snapshotter:
    """The snapshots of one run, each of them written behind the rounds that follow it."""

    def __init__(
        self, folder: RunFolder, states: ClientStates, every: int | Literal["auto"], engine: EngineState | None = None
    ):
        """every: rounds from one snapshot to the next, or `auto`: what one costs decides (`due`)."""
        self.folder, self.states, self.every, self.engine = folder, states, every, engine or EngineState()
        self._under_way = 0  # the round whose snapshot is being written, 0 if none is
        self._began = time.monotonic()

    def due(self, round: int) -> bool:
        """Return whether a round's snapshot is due: with `auto`, once the time since the last one began is so long that what that
        one took is SHARE of it, or LONGEST_S; at first, and where a snapshot costs next to nothing, in every round."""
        if self.every != "auto":
            return round % self.every == 0
        passed = time.monotonic() - self._began
        return not self._under_way and passed >= min(self.folder.snapshot_s / SHARE, LONGEST_S)

    def fill(self, where: Path, round: int, state: Tree) -> None:
        """Write a server state, the engine's own and those of clients into a new snapshot's folder, without waiting for the disk."""
        self._began = time.monotonic()
        save_tree(where, "server", tree.to_numpy(state), sync=False)
        self.engine.save(where)
        segments = self.folder.path / "segments"
        self.states.save(where, segments, snapshots.segment_name(round, self.folder.fence))

    def begun(self, round: int) -> None:
        """Note that a round is committed whose snapshot was filled."""
        self._under_way = round
        self.states.snapshot_begun()

    def settle(self, wait: bool = False) -> None:
        """Give up what a snapshot has replaced that lasts by now. wait: until the one under way lasts. Raises what went wrong with it."""
        if wait:
            self.folder.wait()
        if self._under_way and self.folder.snapshotted == self._under_way:
            self._under_way = 0
            self.states.snapshot_committed()
            snapshots.collect_segments(self.folder.path / "snapshots", self.folder.path / "segments")
