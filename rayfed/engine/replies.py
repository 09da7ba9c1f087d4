"""The parts of replies that did not fold: small ones at the server, large ones computed with where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import tree
from rayfed.engine.messages import CombineCall, DotCall, GramCall, LinearCall, PickCall, Request
from rayfed.fold import Merger, add_combined, counted, largest
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.engine.pool import Pool
    from rayfed.tree import Tree

# Executes (request, handles) of each job; returns their values.
Reduce = Callable[[Sequence[tuple[Request, tuple[Any, ...]]]], list[Any]]

AT_ONCE = 2**24  # numbers that are combined in one job, at most
PIECES, SHARED = (
    16,
    2**14,
)  # into how many jobs the coordinates of a large part are cut, and how many of them each has at least


@dataclass(frozen=True)
class CallParts:
    """Unfolded parts of one call's replies, leaves (c, ...): `small` ones, and those called `names` behind the handle `large`."""

    clients: list[int]
    small: Tree
    names: tuple[str, ...]
    large: Any


class UnfoldedParts:
    """The unfolded parts behind `rayfed.fed.Replies`; all that it returns has a row for each reply, in the order of client ids.

    calls: in the order of their numbers; reduce: executes jobs and gives their values; put: a handle of a tree of the server;
    counters: names of entries that are whole numbers (`Task.counters`).
    """

    def __init__(
        self, calls: list[CallParts], pool: Pool, reduce: Reduce, put: Callable[[Tree], Any], counters: Sequence[str]
    ):
        self.calls, self._pool, self._reduce, self._put, self._counters = calls, pool, reduce, put, counters

    @cached_property
    def _order(self) -> Tensor:
        """The places in the calls' order, by client id, (n,)."""
        clients = np.asarray([c for call in self.calls for c in call.clients], np.int64)
        return torch.as_tensor(np.argsort(clients, kind="stable"))

    def stacked(self, part: str, names: Sequence[str]) -> Tree:
        """Bring a part to the server, leaves (n, ...); names: only these of its entries, all where empty."""
        if not self.calls:
            raise KeyError(f"part {part!r}: nobody replied")
        if names:
            request = PickCall(part, tuple(names))
            found = self._reduce([(request, (self._handle(call, part),)) for call in self.calls])
        else:
            found = [self._value(call, part) for call in self.calls]
        return tree.map(lambda *xs: torch.cat(xs)[self._order], *(tree.from_numpy(p) for p in found))

    def gram(self, part: str, apart: bool = False) -> Any:
        """Multiply all pairs of replies: inner products, (n, n); apart: a tree of those of each entry of the part."""
        handles = [self._handle(call, part) for call in self.calls]
        m = len(handles)
        pairs = [(i, j) for i in range(m) for j in range(i, m)]
        values = self._reduce([(GramCall(part, apart), (handles[i], handles[j])) for i, j in pairs])
        blocks: dict[tuple[int, int], Any] = {}
        for (i, j), value in zip(pairs, values, strict=True):
            blocks[i, j] = tree.from_numpy(value)
            blocks[j, i] = tree.map(lambda x: x.T, blocks[i, j])

        def whole(*of: Tensor) -> Tensor:
            g = torch.cat([torch.cat(of[i * m : (i + 1) * m], 1) for i in range(m)])
            return g[self._order][:, self._order]

        return tree.map(whole, *(blocks[i, j] for i in range(m) for j in range(m)))

    def dot(self, part: str, trees: Sequence[Tree]) -> Tensor:
        """Multiply the replies with K trees, which may have some of the part's entries: inner products, (n, K) float64."""
        other = self._put(tree.stack(trees))
        values = self._reduce([(DotCall(part), (self._handle(call, part), other)) for call in self.calls])
        if not values:
            return torch.zeros(0, len(trees), dtype=torch.float64)
        return torch.cat([tree.from_numpy(value) for value in values])[self._order]

    def linear(self, part: str, weights: Tensor, names: tuple[str, ...] = ()) -> list[Tree]:
        """Combine the replies by weights (K, n) into K trees; names: only these of its entries, all where empty."""
        in_calls = torch.empty(len(self._order), dtype=torch.int64)
        in_calls[self._order] = torch.arange(len(self._order))
        jobs: list[tuple[Request, tuple[Any, ...]]] = []
        first = 0
        for call in self.calls:
            columns = weights[:, in_calls[first : first + len(call.clients)]]
            jobs.append((LinearCall(part, columns.numpy(), names), (self._handle(call, part),)))
            first += len(call.clients)
        merger = Merger(partial(add_combined, counters=self._counters))
        for i, value in enumerate(self._reduce(jobs)):
            merger.add(i, tree.from_numpy(value))
        return tree.unstack(counted(merger.result(), self._counters))

    def combine(
        self, part: str, like: Tree | Tensor, groups: Sequence[np.ndarray], attack: int | None = None, asked: int = 0
    ) -> list[Tree]:
        """Have the rule of aggregation, or an attack's `craft`, combine the coordinates of the replies in each group; a tree for each.

        like: the part's shape, whose floating leaves are combined; of counters the largest counts; groups: numbers of replies in the
        order of client ids; attack, asked: see `CombineCall`.
        """
        leaves = dict(tree.leaves(like))
        counters = [n for n in self._counters if (n,) in leaves]
        moving = {p: x for p, x in leaves.items() if x.is_floating_point() and p not in [(n,) for n in counters]}
        sizes = [x.numel() for x in moving.values()]
        made = torch.cat(
            [tree.from_numpy(v) for v in self._combined(part, tuple(moving), sum(sizes), groups, attack, asked)], 1
        )
        split = dict(zip(moving, made.split(sizes, 1), strict=True))
        rows = self.stacked(part, counters) if counters else {}
        out = []
        for i, group in enumerate(groups):
            found: dict[tuple[str, ...], Tensor] = {p: x[i].reshape(moving[p].shape) for p, x in split.items()}
            most = largest(torch.ones(1, len(group)), {n: x[torch.as_tensor(group)] for n, x in rows.items()})
            out.append(_rebuilt(like, found | {(n,): x[0] for n, x in most.items()}))
        return out

    def _combined(
        self,
        part: str,
        paths: tuple[tuple[str, ...], ...],
        size: int,
        groups: Sequence[np.ndarray],
        attack: int | None,
        asked: int,
    ) -> list[Any]:
        """Return the combined coordinates of leaves, block by block, (G, b) each; size: of all of them."""
        picks = tuple(self._order.numpy()[rows] for rows in groups)
        handles = tuple(self._handle(call, part) for call in self.calls)
        width = max(1, min(AT_ONCE // max(1, len(self._order)), max(SHARED, -(-size // PIECES))))
        return self._reduce(
            [
                (CombineCall(part, paths, i, min(i + width, size), picks, attack, asked), handles)
                for i in range(0, size, width)
            ]
        )

    def _value(self, call: CallParts, part: str) -> Tree:
        """Fetch the part of one call."""
        return call.small[part] if part in call.small else self._pool.get(self._handle(call, part))[part]

    def _handle(self, call: CallParts, part: str) -> Any:
        """Return the handle of the tree that holds the part of one call. KeyError where there is no such part."""
        if part in call.small:
            return self._pool.put({part: call.small[part]})
        if part not in call.names:
            have = sorted({*call.small, *call.names})
            raise KeyError(f"part {part!r} was not kept (folded away, or not sent); kept: {', '.join(have) or 'none'}")
        return call.large


def _rebuilt(like: Tree | Tensor, leaves: Mapping[tuple[str, ...], Tensor], path: tuple[str, ...] = ()) -> Any:
    """Return a tree of the shape of `like` with these leaves; a leaf that is not among them stays."""
    if isinstance(like, Mapping):
        return {n: _rebuilt(x, leaves, (*path, n)) for n, x in like.items()}
    return leaves.get(path, like)
