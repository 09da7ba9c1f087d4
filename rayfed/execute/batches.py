"""Which examples each step of each client sees: index arrays drawn from keys, padded to one shape per cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import keys
from rayfed.lazy import torch
from rayfed.visits import Info, Over, Phase, Visit

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.partition import Federation, Index
    from rayfed.task import Task
    from rayfed.tree import Tree

EVERYBODYS = ("public", "retained")  # splits that are the same rows for every client
MEASURE_BATCH = 128  # rows per step of `once`: large enough for the kernels, small enough for memory
FEWEST, MOST = 64, 1024  # rows of one piece where one model is scored
PIECE_WORK = 2**28  # multiplications in such a piece, about
PIECE = 512  # rows of the pooled test set that a mixture of models predicts at a time
GATHER_LIMIT = 8 * 2**20  # bytes of a phase's batches up to which all of them are gathered at once


class PhaseBatches(NamedTuple):
    """What the k clients of a cohort see in the T steps of one phase, padded to one shape.

    rows: (k, T, m, B) int64 rows of the data arrays; w: (k, T, m, B), 1, or 0 on padding; active: (k, T) bool, false after a
    client's last step; keys: (k, T) int64. m is `Over.batches`; a phase over nothing has B = 0.
    """

    rows: Tensor
    w: Tensor
    active: Tensor
    keys: Tensor


@dataclass
class Cohort:
    """The clients of one call with everything drawn: `info` has leaves (k,), one PhaseBatches per phase of the visit."""

    clients: tuple[int, ...]
    info: Info
    phases: list[PhaseBatches]
    dtype: Any = None

    def one(self, i: int) -> Cohort:
        """Return the cohort of client number `i` alone, without its padded steps."""
        cut = slice(i, i + 1)
        phases = []
        for p in self.phases:
            real = int(p.active[i].sum())
            phases.append(PhaseBatches(p.rows[cut, :real], p.w[cut, :real], p.active[cut, :real], p.keys[cut, :real]))
        return Cohort(self.clients[cut], Info(*(x[cut] for x in self.info)), phases, self.dtype)

    def without(self, bad: Sequence[int]) -> tuple[Cohort, list[int]]:
        """Return the cohort without the positions in `bad`, and the positions that stay."""
        stay = [i for i in range(len(self.clients)) if i not in set(bad)]
        at = torch.as_tensor(stay, dtype=torch.int64)
        phases = [PhaseBatches(p.rows[at], p.w[at], p.active[at], p.keys[at]) for p in self.phases]
        return Cohort(tuple(self.clients[i] for i in stay), Info(*(x[at] for x in self.info)), phases, self.dtype), stay

    def shortened(self, visit: Visit, share: np.ndarray) -> Cohort:
        """Return the cohort whose clients do a share of their training steps, (k,): the first ones, at least one."""
        return self._first(
            visit, lambda phase, steps: torch.ceil(torch.as_tensor(share) * steps) if phase.counts else None
        )

    def told(self, visit: Visit, mine: Tree) -> Cohort:
        """Return the cohort whose clients do as many steps as `mine` says where a phase asks for that (`Over.each`), the first ones."""
        if absent := sorted({p.over.each for p in visit.phases} - {""} - mine.keys()):
            raise TypeError(f"a phase does as many steps as part {absent[0]!r} says, which no client was sent")
        return self._first(visit, lambda phase, steps: mine[phase.over.each].cpu() if phase.over.each else None)

    def _first(self, visit: Visit, most: Callable[[Phase, Tensor], Tensor | None]) -> Cohort:
        """Return the cohort whose clients do only the first steps of a phase: most(phase, their steps), (k,), at least one; None is all."""
        phases = []
        for phase, drawn in zip(visit.phases, self.phases, strict=True):
            steps = drawn.active.sum(1).cpu()
            if (fewer := most(phase, steps)) is not None:
                steps = torch.minimum(steps, fewer.long().clamp(min=1))
                longest = int(steps.max())
                rows, w, step_keys = (x[:, :longest] for x in (drawn.rows, drawn.w, drawn.keys))
                drawn = PhaseBatches(rows, w, torch.arange(longest) < steps[:, None], step_keys)
            phases.append(drawn)
        return Cohort(self.clients, self.info, phases, self.dtype)


def order_of(n: int, over: Over, batch: int, k: int) -> np.ndarray:
    """Return positions (T, m, B) into a client's n examples for one phase, -1 on padding; `k` is the key of the order."""
    if over.kind == "nothing":
        return np.full((over.n, 1, 0), -1)
    if n == 0:
        return np.full((0, over.batches, 1), -1)
    if over.kind in ("once", "whole"):
        width = n if over.kind == "whole" else min(n, MEASURE_BATCH)
        return _cut(np.arange(n), width)[:, None, :]
    per_pass, rng = math.ceil(n / batch), keys.numpy_again(k)
    # steps: as many passes as the steps need
    passes = over.n if over.kind == "epochs" else math.ceil(over.n * over.batches / per_pass)
    flat = np.empty((passes * per_pass, batch), np.int64)
    flat.fill(-1)
    for one in flat.reshape(passes, per_pass * batch):
        one[:n] = rng.permutation(n)
    if over.kind == "steps":
        flat = flat[: over.n * over.batches]
    short = -len(flat) % over.batches
    if short:  # a tuple of batches is always full: the last one borrows from the front
        flat = np.concatenate([flat, flat[np.arange(short) % len(flat)]])
    return flat.reshape(-1, over.batches, flat.shape[1])


def _cut(order: np.ndarray, width: int) -> np.ndarray:
    rows = math.ceil(len(order) / width)
    padded = np.full(rows * width, -1)
    padded[: len(order)] = order
    return padded.reshape(rows, width)


def pooled_pieces(federation: Federation) -> list[np.ndarray]:
    """Cut the pooled test set into pieces of `PIECE` rows of the data arrays, in the order of the set."""
    rows = federation.pooled_test
    return [rows[i : i + PIECE] for i in range(0, len(rows), PIECE)]


def scored_pieces(rows: np.ndarray, task: Task) -> np.ndarray:
    """Cut rows that one model is scored on into pieces of one shape, (pieces, b), as few as their work allows and an even number
    of several, so that any number of actors can share them; the last ones end with the last row again.

    Data and model alone decide, so that how pieces are dealt to calls and actors changes no number.
    """
    places = task.input_shape[-1] if task.kind in ("text", "instruct") else 1
    work = max(
        task.size * places, 1024 * math.prod(task.input_shape)
    )  # the latter, where a network's weights are used often
    pieces = math.ceil(len(rows) / max(FEWEST, min(MOST, PIECE_WORK // work)))
    pieces += pieces % 2 if pieces > 1 else 0
    width = math.ceil(len(rows) / max(1, pieces))
    return np.concatenate([rows, rows[-1:].repeat(pieces * width - len(rows))]).reshape(pieces, width)


class BatchSampler:
    """Draws cohorts for one run: the federation's indices, the batch size and the seed are fixed."""

    def __init__(
        self,
        federation: Federation,
        *,
        seed: int,
        batch_size: int,
        device: str,
        dtype: Any,
        ranks: np.ndarray | None = None,
    ):
        """ranks: (N,) int64, each client's LoRA rank."""
        self.ranks = np.zeros(federation.clients, np.int64) if ranks is None else ranks
        self.fed, self.seed, self.batch, self.device, self.dtype = federation, seed, batch_size, device, dtype
        self.pieces = pooled_pieces(federation)

    def rows(self, client: int, split: str, round: int = 1) -> np.ndarray:
        """Return the rows of the data arrays in one client's split ("train", "test" ...), or in a piece of the pooled test set
        ("pooled 3"), the public set ("public") or another task's rows ("retained"), the same for everyone. Of a stream what the round's
        task makes of it; "test 2" is the test split of task 2 whatever the round is."""
        if split in EVERYBODYS:
            return getattr(self.fed, split)
        if split.startswith("pooled"):
            pieces = pooled_pieces(self.fed.at(round)) if self.fed.stages else self.pieces
            return pieces[int(split.removeprefix("pooled "))]
        return self._index(split, round)[client]

    def _index(self, split: str, round: int) -> Index:
        """Return the rows of each client in a split; see `rows`."""
        name, _, stage = split.partition(" ")
        found: Index = getattr(self.fed.stage(int(stage)) if stage else self.fed.at(round), name)
        return found

    def cohort(
        self,
        visit: Visit,
        clients: Sequence[int],
        *,
        dispatch: int,
        round: int,
        rounds: int,
        lr: float,
        given: np.ndarray | None = None,
    ) -> Cohort:
        """Draw everything that the clients of one call need beyond the payloads.

        lr: the round's learning rate; given: (k, b) the rows that each sees in the place of its own, whatever the split.
        """
        n = len(clients)
        population = [c for c in clients if 0 <= c < len(self.fed.class_counts)]
        real = len(population) == n
        held = self.fed.at(round).class_counts
        counts = held[list(clients)] if real else np.zeros((n, self.fed.classes), np.int64)

        def full(v: Any, kind: Any = np.int64) -> Tensor:
            return torch.as_tensor(np.full(n, v, kind), device=self.device)

        f = np.float64 if self.dtype == torch.float64 else np.float32
        info = Info(
            client=torch.as_tensor(np.asarray(clients, np.int64), device=self.device),
            examples=torch.as_tensor(counts.sum(1), device=self.device),
            counts=torch.as_tensor(counts, device=self.device),
            steps=full(0),
            ahead=full(0),
            lr=full(lr, f),
            sum_lr=full(0, f),
            round=full(round),
            rounds=full(rounds),
            secret=full(keys.key(self.seed, dispatch, -1, "secret among clients")),
            rank=torch.as_tensor(self.ranks[list(clients)], device=self.device) if real else full(0),
        )
        names = _order_names(visit)
        return Cohort(
            tuple(clients),
            info,
            [
                self._phase(name, p.over, clients, dispatch, given, round)
                for name, p in zip(names, visit.phases, strict=True)
            ],
            self.dtype,
        )

    def _phase(
        self, name: str, over: Over, clients: Sequence[int], dispatch: int, given: np.ndarray | None, round: int
    ) -> PhaseBatches:
        """Draw one phase; name: what its order is called in keys."""
        drawn = [keys.key(self.seed, dispatch, c, name) for c in clients]
        held, first, sizes = self._held(clients, over, given, round)
        at, steps = self._positions(over, sizes.tolist(), drawn)
        # Padding reads the client's own data: weight 0 does not undo a NaN.
        where = first[:, None, None, None] + np.maximum(at, 0)
        rows = (
            held[where] if sizes.all() else np.where(sizes[:, None, None, None] > 0, held.take(where, mode="clip"), 0)
        )
        step_keys = keys.fold(np.asarray(drawn, np.int64)[:, None], np.arange(at.shape[1]))
        return PhaseBatches(
            torch.as_tensor(rows, device=self.device),
            torch.as_tensor(at >= 0, device=self.device).to(self.dtype),
            torch.as_tensor(np.arange(at.shape[1]) < steps[:, None]),
            torch.as_tensor(step_keys, device=self.device),
        )

    def _held(
        self, clients: Sequence[int], over: Over, given: np.ndarray | None, round: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows of the data arrays, (n,), and where those of each client begin in them and how many they are, (k,)."""
        if over.kind == "nothing":
            none = np.zeros(len(clients), np.int64)
            return np.zeros(1, np.int64), none, none
        if over.split in EVERYBODYS:
            k, there = len(clients), getattr(self.fed, over.split)
            rows = there if len(there) else np.zeros(1, np.int64)
            return rows, np.zeros(k, np.int64), np.full(k, len(there))
        if given is not None:
            each = np.full(len(given), given.shape[1])
            return given.reshape(-1), np.cumsum(each) - each, each
        if not over.split.startswith("pooled"):
            index, ids = self._index(over.split, round), np.asarray(clients, np.int64)
            if ids.min() < 0 or ids.max() >= len(index):
                raise IndexError(f"clients {ids.min()} to {ids.max()} of {len(index)}")
            first = index.offsets[ids]
            return index.rows if len(index.rows) else np.zeros(1, np.int64), first, index.offsets[ids + 1] - first
        own = [self.rows(c, over.split, round) for c in clients]
        sizes = np.array([len(o) for o in own])
        return np.concatenate([*own, np.zeros(1, np.int64)]), np.cumsum(sizes) - sizes, sizes

    def _positions(self, over: Over, sizes: Sequence[int], drawn: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return positions (k, T, m, B) into the clients' examples, -1 on padding, and the real steps of each client, (k,)."""
        k = len(sizes)
        if over.kind in ("epochs", "steps") and over.batches == 1:  # as below, in one array from the start
            each = [math.ceil(n / self.batch) for n in sizes]  # batches of a pass
            if over.kind == "epochs":
                passes, steps = [over.n] * k, over.n * np.array(each)
            else:
                passes, steps = [math.ceil(over.n / e) if e else 0 for e in each], over.n * (np.array(each) > 0)
            longest = max(p * e for p, e in zip(passes, each, strict=True))
            at = np.full((k, longest, 1, self.batch), -1)
            for line, n, p, e, key in zip(at.reshape(k, -1), sizes, passes, each, drawn, strict=True):
                rng = keys.numpy_again(key)
                for begin in range(0, p * e * self.batch, e * self.batch or 1):
                    line[begin : begin + n] = rng.permutation(n)
            at = at[:, : steps.max()]
            at[np.arange(at.shape[1]) >= steps[:, None]] = -1
            return at, steps
        orders = [order_of(n, over, self.batch, key) for n, key in zip(sizes, drawn, strict=True)]
        steps = np.array([len(one) for one in orders])
        at = np.full((k, steps.max(), over.batches, max(one.shape[2] for one in orders)), -1)
        for i, one in enumerate(orders):
            at[i, : len(one), :, : one.shape[2]] = one
        return at, steps


def _order_names(visit: Visit) -> list[str]:
    """Return what the phases' orders are called in keys.

    Training and measuring phases are counted apart: one that measures before training does not change the order of training.
    """
    trained = measured = 0
    names = []
    for p in visit.phases:
        names.append(f"order {trained}" if p.counts else f"order of measuring {measured}")
        trained, measured = trained + p.counts, measured + (not p.counts)
    return names


def gather(drawn: PhaseBatches, data: Tree) -> Callable[..., Any]:
    """Return a function (t, i=0) -> step t's batch for the clients from number i on.

    A batch has leaves (k - i, B, ...), the columns of `data` and `w`; it is a tuple of such where the phase asks for several.
    Where all batches together take little memory they are gathered at once.
    """
    # Step by step in memory: a batch then has the same strides whatever the number of steps.
    rows, w = (x.transpose(0, 1).contiguous() for x in (drawn.rows, drawn.w))
    _, _, several, width = rows.shape
    if not width:
        return lambda t, i=0: {}
    size = rows.numel() * sum(x[0].numel() * x.element_size() for x in data.values())
    gathered = {n: _take_rows(x, rows) for n, x in data.items()} if size <= GATHER_LIMIT else {}

    def batch_of(t: int, i: int = 0) -> Any:
        columns = {n: x[t, i:] for n, x in gathered.items()} or {n: _take_rows(x, rows[t, i:]) for n, x in data.items()}
        columns["w"] = w[t, i:]
        batches = tuple({n: x[:, j] for n, x in columns.items()} for j in range(several))
        return batches if several > 1 else batches[0]

    return batch_of


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows]; torch copies whole rows only where they are indexed in this way."""
    return x.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *x.shape[1:])
