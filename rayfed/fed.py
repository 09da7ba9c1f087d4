"""The federation as a server program sees it: sample clients, ask them, get folded replies.

got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
got.folded["delta"]; len(got); got.failures; got.gather("counts"); got.gram("delta"); got.linear("delta", W)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import fold as folds
from rayfed import keys, tree, visits
from rayfed.adapters import ranks
from rayfed.engine.client_states import ClientStore
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.failures import ClientFailed, Failure, FailurePolicy, Raise
from rayfed.engine.messages import CallResult, DotCall, GramCall, Job, LinearCall, PickCall, Request, Value, VisitCall
from rayfed.errors import RunFailed
from rayfed.fold import Fold, Merger
from rayfed.lazy import torch
from rayfed.wire import ANY

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.engine.pool import Outcome, Pool
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visits import BoundVisit

Cohort = tuple[int, ...]


class Reply(NamedTuple):
    """One client's answer: its id, its train examples, the real steps it took, its LoRA rank (0 without an adapter)."""

    client: int
    examples: int
    steps: int
    rank: int = 0


class Kept(NamedTuple):
    """The replies of one cohort that did not fold: small parts here, those called `names` behind the handle `large`."""

    clients: list[int]
    small: Tree
    names: tuple[str, ...]
    large: Any


class Folded(dict[str, Any]):
    """part -> what its fold gave; without a part that nobody sent and whose zero the wire does not tell."""

    def __init__(self) -> None:
        self.lacking: dict[str, RunFailed] = {}  # what is then raised where it is asked for

    def __missing__(self, part: str) -> Any:
        raise self.lacking.get(part) or KeyError(part)


class Replies(Sequence[Reply]):
    """What came back from one `ask`, ordered by client id.

    folded: part -> tree (or {key: tree} for a fold with `by`), of no reply zeros; a part declared "any" has none: look at `ids`
    first; weight: part -> the fold's total weight (likewise); failures: client -> reason, for clients that were dropped.
    """

    def __init__(
        self,
        replies: list[Reply],
        kept: list[Kept],
        folded: Folded,
        weight: dict[str, Any],
        failures: dict[int, str],
        fed: Fed,
    ):
        self._replies = sorted(replies)
        self._kept, self._fed = kept, fed
        self.folded, self.weight, self.failures = folded, weight, failures
        self.ids = [r.client for r in self._replies]

    def __len__(self) -> int:
        return len(self._replies)

    def __getitem__(self, i: Any) -> Any:
        return self._replies[i]

    @property
    def examples(self) -> Tensor:
        """Train examples of each reply, (n,) float64, in the order of `ids`."""
        return torch.tensor([float(r.examples) for r in self._replies], dtype=torch.float64)

    @property
    def ranks(self) -> Tensor:
        """LoRA rank of each reply, (n,) int64, in the order of `ids`."""
        return torch.tensor([r.rank for r in self._replies], dtype=torch.int64)

    def _order(self) -> Tensor:
        here = [c for k in self._kept for c in k.clients]
        return torch.as_tensor(np.argsort(np.asarray(here, np.int64), kind="stable"))

    def stacked(self, part: str, names: Sequence[str] = ()) -> Tree:
        """An unfolded part of all replies at the server, leaves (n, ...), in the order of `ids`.

        names: of the part's entries only these, cut out where a large part lies (the last layer of each update).
        """
        if not self._kept:
            raise KeyError(f"part {part!r}: nobody replied")
        pieces = (
            [
                tree.from_numpy(p)
                for p in self._fed._reduce(
                    [(PickCall(part, tuple(names)), (self._where(i, part),)) for i in range(len(self._kept))]
                )
            ]
            if names
            else [
                tree.from_numpy(k.small[part] if part in k.small else self._fed.pool.get(self._where(i, part))[part])
                for i, k in enumerate(self._kept)
            ]
        )
        order = self._order()
        return tree.map(lambda *xs: torch.cat(xs)[order], *pieces)

    def gather(self, part: str) -> dict[int, Tree]:
        """client -> part, at the server."""
        return dict(zip(self.ids, tree.unstack(self.stacked(part)), strict=True)) if self._replies else {}

    def gram(self, part: str) -> Tensor:
        """(n, n) inner products of a large part, computed where it lies; rows in the order of `ids`."""
        where = [self._where(i, part) for i in range(len(self._kept))]
        m = len(where)
        jobs = [(i, j) for i in range(m) for j in range(i, m)]
        got = self._fed._reduce([(GramCall(part), (where[i], where[j])) for i, j in jobs])
        blocks: dict[tuple[int, int], Tensor] = {}
        for (i, j), value in zip(jobs, got, strict=True):
            blocks[i, j] = tree.from_numpy(value)
            blocks[j, i] = blocks[i, j].T
        g = torch.cat([torch.cat([blocks[i, j] for j in range(m)], 1) for i in range(m)])
        order = self._order()
        return g[order][:, order]

    def dot(self, part: str, trees: Sequence[Tree], names: Sequence[str] = ()) -> Tensor:
        """(n, K) inner products of a large part with K trees of the server, in float64, computed where the part lies; rows in
        the order of `ids`. names: over these entries only.
        """
        cut = [{n: t[n] for n in names} if names else t for t in trees]
        other = self._fed._lay(tree.stack(cut))
        jobs = [(DotCall(part), (self._where(i, part), other)) for i in range(len(self._kept))]
        got = [tree.from_numpy(value) for value in self._fed._reduce(jobs)]
        return torch.cat(got)[self._order()] if got else torch.zeros(0, len(trees), dtype=torch.float64)

    def linear(self, part: str, weights: Tensor) -> list[Tree]:
        """`weights` (K, n), columns in the order of `ids`, times a large part: K trees, computed where the part lies."""
        back = torch.empty(len(self.ids), dtype=torch.int64)
        order = self._order()
        back[order] = torch.arange(len(self.ids))
        at = 0
        jobs: list[tuple[Request, tuple[Any, ...]]] = []
        for i, k in enumerate(self._kept):
            columns = weights[:, back[at : at + len(k.clients)]]
            jobs.append((LinearCall(part, columns.numpy()), (self._where(i, part),)))
            at += len(k.clients)
        merger = Merger(tree.add)
        for i, value in enumerate(self._fed._reduce(jobs)):
            merger.add(i, tree.from_numpy(value))
        return tree.unstack(merger.result())

    def _where(self, i: int, part: str) -> Any:
        """What the pool resolves to the tree that holds a part of one call."""
        k = self._kept[i]
        if part in k.small:
            return self._fed.pool.put({part: k.small[part]})
        if part not in k.names:
            have = sorted({*k.small, *k.names})
            raise KeyError(
                f"part {part!r} was not kept (folded away, or not sent); at hand: {', '.join(have) or 'none'}"
            )
        return k.large


class Fed:
    """One run's federation on a pool. `round`, `rounds` count from 1; clients 0..population-1 take part."""

    def __init__(self, config: Config, federation: Federation, method: Method, task: Task, pool: Pool, run: str):
        self.config, self.federation, self.method, self.task, self.pool, self.run = (
            config,
            federation,
            method,
            task,
            pool,
            run,
        )
        self.population, self.rounds = federation.population, config.rounds
        self._everyone = np.arange(federation.population)
        self.store = ClientStore(pool)
        self.round = 0
        self._own_rank = ranks.kept(config, method.wire)
        self._ranked = self._own_rank or ranks.unequal(config)
        self.size = cohort_size(config, federation, method, task)
        self.policy = FailurePolicy.of(config.failures)
        self.watch: Callable[[dict[str, Any]], None] | None = None
        self.note: Callable[[str], None] | None = None  # gets what workers note beside their results
        self.begin(0)

    def begin(self, round: int, score_local: bool = False) -> None:
        """A round starts: numbers of asks, draws and meters start anew, so a round depends on nothing but its number."""
        self.round, self._score_local = round, score_local
        self._asks = self._samples = 0
        self._puts: dict[int, tuple[Any, Any, set[int]]] = {}
        self.logged: dict[str, tuple[float, float]] = {}
        self.meter = {"bytes/up": 0, "bytes/down": 0, "ray/bytes/up": 0, "ray/bytes/down": 0, "visits": 0, "dropped": 0}
        self._before: dict[int, int] = {}  # the rank that a client had when it was last asked, where its state says it
        self.local_scores: dict[int, dict[str, float]] = {}
        self.seconds: dict[int, float] = {}

    # -- randomness and records --------------------------------------------------------------------------------------

    def key(self, purpose: str) -> int:
        """The server's key of this round for `purpose`."""
        return keys.key(self.config.seed, self.round << 20, -1, purpose)

    def log(self, name: str, value: float, n: float = 1) -> None:
        """A number for this round's row; several calls give their mean weighted by `n`."""
        total, weight = self.logged.get(name, (0.0, 0.0))
        self.logged[name] = (total + float(value) * n, weight + n)

    def planted(self, clients: Sequence[int]) -> Tensor:
        """The planted group of each client, (n,) int64, -1 without one: the truth, for oracles and scores only."""
        return torch.as_tensor(self.federation.group[list(clients)])

    def probe(self) -> Tensor:
        """The inputs of the public probe set (`federation.probe`), (n, *input_shape) where the task is; no labels."""
        x = torch.as_tensor(self.federation.arrays["x"][self.federation.probe])
        return x.to(self.task.device, self.task.dtype if x.is_floating_point() else x.dtype)

    # -- participation -----------------------------------------------------------------------------------------------

    def sample(self, n: int | None = None, *, where: Sequence[int] | None = None) -> Cohort:
        """This round's clients by `federation.participation`, from a keyed stream that is the same for every method.

        n: how many (default `federation.per_round`); where: only these clients. Sorted; may be empty (Poisson).
        """
        self._samples += 1
        rng = keys.numpy_again(keys.key(self.config.seed, self.round << 20, -1, f"participation {self._samples}"))
        among = self._everyone if where is None else np.asarray(sorted(where), np.int64)
        want = min(self.config.per_round() if n is None else n, len(among))
        p = self.config.federation.participation
        if p.kind == "poisson" and n is None:
            q = want / max(1, len(among))
            return tuple(among[rng.random(len(among)) < q].tolist())
        if p.kind == "cyclic" and n is None:
            # One fixed shuffle, walked block by block, round after round.
            order = keys.numpy(keys.key(self.config.seed, 0, -1, "cyclic order")).permutation(among)
            start = (self.round - 1) * want % max(1, len(order))
            return tuple(sorted(np.take(order, np.arange(start, start + want), mode="wrap").tolist()))
        return tuple(sorted(rng.choice(among, want, replace=False).tolist())) if want else ()

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(
        self,
        visit: BoundVisit | Evaluation,
        to: Sequence[int],
        *,
        shared: Tree | None = None,
        mine: dict[int, Tree] | None = None,
        fold: Fold | Sequence[Fold] = (),
        keep: str | Sequence[str] = (),
        metered: bool = True,
    ) -> Replies:
        """Ask clients for one visit and wait for all of them.

        visit: of the method, `self.train` or `self.score.with_(k=3)`; to: client ids, in any order; shared: parts for
        everyone; mine: client -> small tree for it alone; fold: what becomes of parts; keep: folded parts that stay
        reachable for `gram`, `linear` and `gather`; metered: false where a deployment's server would work this out from what
        it holds of each client (it runs where the client states lie, and counts in no bytes and no visits). A client that
        fails is dropped or ends the run, as `failures.client_error` says.
        """
        evaluation = isinstance(visit, Evaluation)
        name, arguments = (visit, ()) if isinstance(visit, Evaluation) else visits.require(visit, self.method).call
        shared, wanted = shared or {}, (fold,) if isinstance(fold, Fold) else tuple(fold)
        keeping = (keep,) if isinstance(keep, str) else tuple(keep)
        quiet = evaluation or not metered
        if len({f.part for f in wanted}) < len(wanted):
            raise ValueError(f"{name}: a part is folded twice in one ask: {', '.join(f.part for f in wanted)}")
        if not evaluation:
            self._check_down(str(name), shared, mine)
        self._asks += 1
        dispatch = (self.round << 20) + self._asks
        cohorts = self._cohorts(name, to)
        new = {part: self._new(shared[part], to, quiet) for part in shared}
        handles = tuple(self._put(shared[part]) for part in shared)
        jobs, calls = [], []
        for ids in cohorts:
            blocks, places = self.store.lookup(ids) if self.method.wire.keep else ((), ())
            own_mine = _stacked_mine(mine, ids)
            call = VisitCall(
                name,
                ids,
                dispatch,
                self.round,
                self.rounds,
                tuple(shared),
                own_mine,
                places,
                wanted,
                keeping,
                self._score_local and not quiet,
                arguments,
            )
            jobs.append(Job(self.run, call, (*handles, *blocks)))
            calls.append(call)
        got = self._collect(str(name), jobs, wanted, quiet)
        if not quiet:
            self._meter_down(shared, new, calls)
        return got

    def _collect(self, name: str, jobs: list[Job], wanted: tuple[Fold, ...], quiet: bool) -> Replies:
        merging = self.pool.merging()
        kept: dict[int, Kept] = {}
        replies: list[Reply] = []
        failures: dict[int, str] = {}
        for number, out in self._run(jobs):
            result = out.result
            assert isinstance(result, CallResult)
            self._failed(name, result.failures, failures)
            if wanted:
                merging.add(number, out)
            ids = result.clients
            self._before.update(result.ranks_before)
            replies += [Reply(*r) for r in zip(ids, result.examples, result.steps, result.ranks, strict=True)]
            if ids:
                kept[number] = Kept(ids, result.small, result.large, out.large)
            if out.states is not None:
                self.store.write(ids, out.states)
            if not quiet:
                self.meter["bytes/up"] += result.bytes_up
                self.meter["visits"] += len(ids)
                self.local_scores.update(result.local_scores)
                self.seconds.update({c: result.seconds / max(1, len(ids)) for c in ids})
            if not out.in_process:
                self.meter["ray/bytes/up"] += tree.nbytes(result.small) + folds.nbytes(result.folded or {})
            if self.watch:
                self.watch({"visits": self.meter["visits"]})
        self.meter["dropped"] += len(failures)
        while again := merging.lost():
            for at, out in self._run([jobs[i] for i in again]):
                merging.add(again[at], out)
        everything = merging.result()
        self.meter["ray/bytes/up"] += merging.moved
        folded, weight = Folded(), {}
        for f in wanted:
            try:
                merged = everything.get(f.part) or ({} if f.by else {"": {"total": self._zeros(f.part), "weight": 0.0}})
            except RunFailed as unknown:
                folded.lacking[f.part], weight[f.part] = unknown, 0.0
                continue
            folded[f.part], weight[f.part] = folds.finish(f, merged)
        return Replies(replies, [kept[i] for i in sorted(kept)], folded, weight, failures, self)

    def _failed(self, name: str, found: dict[int, Failure], failures: dict[int, str]) -> None:
        for client, failure in found.items():
            failures[client] = failure.reason
            if isinstance(self.policy.decide(failure), Raise):
                raise ClientFailed(client, self.round, name, failure)

    def _cohorts(self, name: str | Evaluation, to: Sequence[int]) -> list[Cohort]:
        """Clients of similar work together, whatever order they were named in: size by size, then by id."""
        if name is Evaluation.GLOBAL:
            ordered = sorted(to)
        else:
            if len(set(to)) != len(to):
                raise ValueError(f"{name}: a client is asked twice in one ask")
            ids, offsets = np.fromiter(to, np.int64, len(to)), self.federation.train.offsets
            ordered = ids[np.lexsort((ids, offsets[ids + 1] - offsets[ids]))].tolist()
        return [tuple(ordered[i : i + self.size]) for i in range(0, len(ordered), self.size)]

    def _put(self, value: Tree) -> Any:
        """A shared part goes out once a round however often it is asked with."""
        known = self._puts.get(id(value))
        if known is None:
            known = (value, self.pool.put(tree.to_numpy(value)), set())
            self._puts[id(value)] = known
            self.meter["ray/bytes/down"] += tree.nbytes(value)
        return known[1]

    def _new(self, value: Tree, to: Sequence[int], quiet: bool) -> list[int]:
        """Who of `to` does not have a shared part from this round yet; the others do not pay again."""
        self._put(value)
        have = self._puts[id(value)][2]
        new = [] if quiet else sorted(set(to) - have)
        have.update(new)
        return new

    def _meter_down(self, shared: Tree, new: dict[str, list[int]], calls: Sequence[VisitCall]) -> None:
        """Bytes of what went out, by the rank that each client had when it came."""

        def of(clients: Sequence[int]) -> list[int] | None:
            return [self._before.get(c, int(self.task.ranks[c])) for c in clients] if self._ranked else None

        for part, clients in new.items():
            rows = tree.values(shared[part])[0].shape[0] if self.method.wire.down[part].routed else 1
            one = {part: tree.map(lambda x: x[None], shared[part])}
            for count, held in ranks.kinds(of(clients), len(clients)):
                self.meter["bytes/down"] += ranks.cost(self.method.cost, one, held) // rows * count
        for call in calls:
            self.meter["bytes/down"] += ranks.cost(self.method.cost, tree.from_numpy(call.mine), of(call.clients))

    def _lay(self, value: Tree) -> Any:
        """A handle of a tree of the server that jobs need where the large parts lie."""
        self.meter["ray/bytes/down"] += tree.nbytes(value)
        return self.pool.put(tree.to_numpy(value))

    def _check_down(self, name: str, shared: Tree, mine: dict[int, Tree] | None) -> None:
        sent = set(shared) | {n for m in (mine or {}).values() for n in m}
        unknown = sorted(sent - self.method.wire.down.keys())
        if unknown:
            raise TypeError(f"{name}: parts {unknown} go down but the wire declares {sorted(self.method.wire.down)}")

    def _zeros(self, part: str) -> Tree:
        """What a fold over no reply gives: zeros of the declared shape."""
        shape = self.method.wire.up[part].shape if part in self.method.wire.up else ANY
        try:
            return shape.zeros(self.task)
        except RunFailed as unknown:
            message = f"nobody replied and part {part!r}, declared {str(shape)!r}, has no zero to stand for it"
            raise RunFailed(message) from unknown

    def _reduce(self, jobs: Sequence[tuple[Request, tuple[Any, ...]]]) -> list[Any]:
        values: list[Any] = [None] * len(jobs)
        for i, out in self._run([Job(self.run, request, handles) for request, handles in jobs]):
            assert isinstance(out.result, Value)
            values[i] = out.result.value
            self.meter["ray/bytes/up"] += 0 if out.in_process else tree.nbytes(values[i])
        return values

    def _run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        note = self.note or (lambda sentence: None)
        for number, out in self.pool.execute(jobs):
            for sentence in out.result.notes:
                note(sentence)
            yield number, out


def _stacked_mine(mine: dict[int, Tree] | None, ids: Cohort) -> Tree:
    if not mine:
        return {}
    return tree.to_numpy(tree.stack([mine[c] for c in ids]))


TOGETHER = 4e-3  # seconds of a round's work: below, a second call or the way to an actor costs more than it saves


def together(config: Config, federation: Federation, step: float) -> bool:
    """Whether a round's clients had better be one call, where a client's local step takes `step` seconds."""
    local, asked = config.local, config.per_round()
    mean = float(federation.class_counts[: federation.population].sum(1).mean())
    steps = local.steps or (local.epochs or 1) * math.ceil(mean / local.batch_size)
    return asked <= 128 and asked * steps * step < TOGETHER


def cohort_size(config: Config, federation: Federation, method: Method, task: Task) -> int:
    """Clients per call: `resources.cohort`, or for `auto` a function of config and shapes alone.

    At least two calls a round so that two actors share it, at most about 2 GiB of client models, gradients and optimizer
    state, at most 32 clients; of small models up to 128, whose work is less than a call's.
    """
    if config.resources.cohort != "auto":
        return int(config.resources.cohort)
    asked = max(1, config.per_round())
    each = max(1, 6 * tree.nbytes(task.params_like))
    calls = max(2, math.ceil(asked / min(128, max(32, 64 * 2**20 // each))))
    calls += calls % 2
    fits = max(1, 2 * 2**30 // each)
    return max(1, min(math.ceil(asked / calls), fits))
