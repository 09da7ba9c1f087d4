"""Bytes of one round: those that a deployment would send over the wire, and those that this engine moves between processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rayfed import tree
from rayfed.adapters import ranks

if TYPE_CHECKING:
    from rayfed.engine.messages import CallResult, VisitCall
    from rayfed.method import Method
    from rayfed.tree import Tree


class ByteMeter:
    """Counts what goes down to clients and comes up from them, by each client's LoRA rank where ranks differ.

    A client that gets a shared part is charged for it once a round, however many asks carry it. up, down: on the wire;
    moved_up, moved_down: between processes; cut_up, cut_down: of up and down, what crossed the cuts of split networks.
    """

    def __init__(self, method: Method, rank_of: Callable[[int], int] | None, splits: bool = False):
        """rank_of: client -> its drawn rank; None where all clients have one. splits: whether the network is cut (`task.split`)."""
        self.method, self.rank_of, self.splits = method, rank_of, splits
        self.reset()

    def reset(self) -> None:
        """Begin a round."""
        self.up = self.down = self.moved_up = self.moved_down = self.cut_up = self.cut_down = 0
        self._holders: dict[int, set[int]] = {}  # id of a shared value -> the clients that have it
        self._ranks_before: dict[int, int] = {}  # when a client was last asked, where its state says it

    def row(self) -> dict[str, int]:
        """Return the counts by the names of their metrics."""
        return {
            "bytes/up": self.up,
            "bytes/down": self.down,
            "ray/bytes/up": self.moved_up,
            "ray/bytes/down": self.moved_down,
            **({"bytes/cut/up": self.cut_up, "bytes/cut/down": self.cut_down} if self.splits else {}),
        }

    def newcomers(self, value: Tree, clients: Sequence[int]) -> list[int]:
        """Return the clients that do not have a shared value of this round yet, sorted; from now on they do.

        The value must outlive the round: it is known by its id.
        """
        holders = self._holders.setdefault(id(value), set())
        new = sorted(set(clients) - holders)
        holders.update(new)
        return new

    def count_down(
        self, shared: Mapping[str, Tree], new: Mapping[str, Sequence[int]], calls: Sequence[VisitCall]
    ) -> None:
        """Count shared parts for their new holders, and what went to each client alone, by the ranks that they had at the time."""
        for part, clients in new.items():
            rows = tree.values(shared[part])[0].shape[0] if self.method.wire.down[part].routed else 1
            one = {part: tree.map(lambda x: x[None], shared[part])}
            for count, held in ranks.kinds(self._ranks(clients), len(clients)):
                self.down += ranks.cost(self.method.cost, one, held) // rows * count
        for call in calls:
            self.down += ranks.cost(self.method.cost, tree.from_numpy(call.mine), self._ranks(call.clients))

    def cross(self, crossed: Sequence[tuple[int, int]]) -> None:
        """Count what crossed the cuts of split networks, (bytes up, bytes down) of each reply."""
        up, down = sum(u for u, _ in crossed), sum(d for _, d in crossed)
        self.up, self.down = self.up + up, self.down + down
        self.cut_up, self.cut_down = self.cut_up + up, self.cut_down + down

    def note_ranks(self, result: CallResult) -> None:
        """Note the ranks that a call's clients had when they were asked."""
        self._ranks_before.update(result.ranks_before)

    def _ranks(self, clients: Sequence[int]) -> list[int] | None:
        if self.rank_of is None:
            return None
        return [self._ranks_before.get(c, self.rank_of(c)) for c in clients]
