"""The federation as a server program sees it: sample clients, ask them, get folded replies.

got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
got.folded["delta"]; len(got); got.failures; got.gather("counts"); got.gram("delta"); got.linear("delta", W)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import numpy as np

from rayfed import clock, keys, participation, selection, stragglers, tree, visits
from rayfed.errors import FailsAgain, RunFailed
from rayfed.fold import Fold
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.storage.timeline import Visits
    from rayfed.task import Task
    from rayfed.tree import Tree
    from rayfed.visits import Arguments, BoundVisit


class Reply(NamedTuple):
    """Describe one client's reply: its id, its train examples, the real steps it took, its LoRA rank (0 without an adapter), the bytes that
    crossed the cuts of its network both ways (`task.split`)."""

    client: int
    examples: int
    steps: int
    rank: int = 0
    crossed: int = 0


class Parts(Protocol):
    """The parts of an ask's replies that did not fold, wherever they are; rows and columns in the order of client ids."""

    def stacked(self, part: str, names: Sequence[str]) -> Any: ...

    def gram(self, part: str) -> Tensor: ...

    def dot(self, part: str, trees: Sequence[Tree]) -> Tensor: ...

    def linear(self, part: str, weights: Tensor) -> list[Tree]: ...


class FoldedParts(dict[str, Any]):
    """part -> what its fold gave. A part that nobody sent and whose shape has no zero is missing: RunFailed where it is read."""

    def __init__(self) -> None:
        self.without_zero: dict[str, RunFailed] = {}  # part -> what is raised

    def __missing__(self, part: str) -> Any:
        raise self.without_zero.get(part) or KeyError(part)


class Replies(Sequence[Reply]):
    """Hold what came back from one `Fed.ask`: a sequence of `Reply`, ordered by client id.

    Attributes:
        ids: of the clients that replied.
        folded: part -> what its fold gave, a tree, or {key: tree} for a fold with `by`. Of no reply it is zeros; where the
            declared shape has none (`ANY`), reading it raises RunFailed: read `ids` first.
        weight: part -> the fold's sum of weights, likewise.
        failures: client -> reason, for clients that were dropped.

    Parts that were not folded, or are named in `keep`, are brought to the server by `stacked` and `gather`, which suits small
    ones; large ones stay where the clients ran, and `gram`, `dot` and `linear` compute with them there. KeyError names a part that is
    neither.

    Example: `fed` and `state` as `Method.round` is given them.

        >>> from rayfed import mean
        >>> got = fed.ask(fed.method.train, fed.sample(3), shared=state, fold=mean("delta"), keep="delta")
        >>> [reply.examples for reply in got] == got.examples.tolist()
        True
        >>> got.gram("delta").shape
        torch.Size([3, 3])
        >>> (average,) = got.linear("delta", got.examples[None] / got.examples.sum())
        >>> bool(tree.norm(tree.sub(average, got.folded["delta"])) < 1e-6)
        True
    """

    def __init__(
        self,
        replies: list[Reply],
        parts: Parts,
        folded: FoldedParts,
        weight: dict[str, Any],
        failures: dict[int, str],
    ):
        self._replies, self._parts = sorted(replies), parts
        self.folded, self.weight, self.failures = folded, weight, failures
        self.ids = [r.client for r in self._replies]

    def __len__(self) -> int:
        return len(self._replies)

    @overload
    def __getitem__(self, i: int) -> Reply: ...

    @overload
    def __getitem__(self, i: slice) -> list[Reply]: ...

    def __getitem__(self, i: int | slice) -> Reply | list[Reply]:
        return self._replies[i]

    @property
    def examples(self) -> Tensor:
        """Return the train examples of each reply, (n,) float64, in the order of `ids`."""
        return torch.tensor([float(r.examples) for r in self._replies], dtype=torch.float64)

    @property
    def ranks(self) -> Tensor:
        """Return the LoRA rank of each reply, (n,) int64, in the order of `ids`."""
        return torch.tensor([r.rank for r in self._replies], dtype=torch.int64)

    def stacked(self, part: str, names: Sequence[str] = ()) -> Any:
        """Bring an unfolded part of all replies to the server, leaves (n, ...), in the order of `ids`.

        names: of the part's entries only these, cut out where a large part is (the last layer of each update). KeyError where
        nobody replied, or the part was folded away or not sent.
        """
        return self._parts.stacked(part, names)

    def gather(self, part: str) -> dict[int, Any]:
        """Bring an unfolded part to the server, as client -> part. Errors as in `stacked`; {} where nobody replied."""
        return dict(zip(self.ids, tree.unstack(self.stacked(part)), strict=True)) if self._replies else {}

    def gram(self, part: str) -> Tensor:
        """Return the (n, n) inner products of a large part, computed where it is; rows in the order of `ids`. Of models and updates
        without running statistics and counters (`Task.buffers`)."""
        return self._parts.gram(part)

    def dot(self, part: str, trees: Sequence[Tree], names: Sequence[str] = ()) -> Tensor:
        """Return the (n, K) inner products of a large part with K trees of the server, in float64, computed where the part is;
        rows in the order of `ids`. names: over these entries only. Buffers are left out as in `gram`.
        """
        return self._parts.dot(part, [{n: t[n] for n in names} if names else t for t in trees])

    def linear(self, part: str, weights: Tensor) -> list[Tree]:
        """Return `weights` (K, n), columns in the order of `ids`, times a large part: K trees, computed where the part is."""
        return self._parts.linear(part, weights)


class Kept(Protocol):
    """What the engine carries from round to round: the engine's is `rayfed.engine.engine_state.EngineState`."""

    def get(self, name: str) -> Tree: ...

    def put(self, name: str, state: Tree) -> None: ...


class Dispatcher(Protocol):
    """What brings visits to clients and their replies back: the engine's is `rayfed.engine.dispatch.Dispatch`.

    simulated: seconds that this round's asks take on the clients' devices; worked: its visits, (clients, when each began and ended);
    engine: what is carried beside the method's state.
    """

    simulated: float
    worked: list[Visits]

    @property
    def engine(self) -> Kept: ...

    def begin(self, round: int, score_local: bool) -> None:
        """Begin a round: numbers of asks and counts of bytes start at 0 again."""
        ...

    def ask(
        self,
        visit: Any,
        clients: Sequence[int],
        *,
        arguments: Arguments = (),
        shared: Tree,
        mine: Mapping[int, Tree],
        folds: tuple[Fold, ...] = (),
        keep: tuple[str, ...] = (),
        metered: bool = False,
        rows: np.ndarray | None = None,
    ) -> Replies:
        """Have a visit executed; see `Fed.ask`."""
        ...


class Fed:
    """Hold a server program's view of one run's federation. `round`, `rounds` count from 1; clients 0..population-1 take part.

    federation: who holds what in this round; whole: the same with all tasks of a stream; read_rounds: whether the method has asked for
    `rounds`.
    """

    def __init__(self, config: Config, federation: Federation, method: Method, task: Task, dispatcher: Dispatcher):
        self.config, self.federation, self.method, self.task = config, federation, method, task
        self.whole = federation
        self.population, self.read_rounds = federation.population, False
        self._dispatcher = dispatcher
        self._everyone = np.arange(federation.population)
        kind = config.federation.participation.kind
        self._comes = participation.Availability(config, federation) if kind in participation.BY_THEMSELVES else None
        self._devices = clock.devices(config, federation.clients)
        self._usual: tuple[Federation, np.ndarray] | None = (
            None  # a split, seconds of its visits as the config asks for
        )
        late = config.failures.stragglers
        self._hurries = late.deadline_s is not None or late.over_select > 0
        self.begin(0)

    def begin(self, round: int, score_local: bool = False) -> None:
        """Begin a round: numbers of asks, draws and records start afresh, so a round depends on nothing but its number.

        score_local: whether training visits also score their locally trained models.
        """
        self.round = round
        if self.whole.stages:
            self.federation = self.whole.at(round)
            self._everyone = np.flatnonzero(self.federation.train.sizes()[: self.population])
        self._samples = 0
        self._elapsed: float | None = None
        self._waited = 0.0
        self.sent: list[Visits] = []  # by a clock (`rayfed.clock.Clock`): clients, when each began and will have ended
        self.stale: dict[int, int] = {}  # staleness -> replies
        self.logged: dict[str, tuple[float, float]] = {}  # name -> (weighted sum, weight)
        self._dispatcher.begin(round, score_local)

    @property
    def stage(self) -> int:
        """The number of the task that a stream (`federation.stream`) has in this round, from 1; 1 without a stream."""
        return self.whole.stage_of(self.round)

    @property
    def stage_ends(self) -> bool:
        """Whether this is the last round of a task of a stream; of its last task, of so many rounds as the others have."""
        every = self.whole.every
        return every > 0 and self.round % every == 0 and self.round <= every * len(self.whole.stages)

    @property
    def rounds(self) -> int:
        """The number of all rounds. A method that computes with it says so in `reads_rounds`."""
        self.read_rounds = True
        return self.config.rounds

    # -- randomness and records --------------------------------------------------------------------------------------

    def key(self, purpose: str) -> int:
        """Return the server's key of this round for `purpose`."""
        return keys.key(self.config.seed, self.round << 20, -1, purpose)

    def log(self, name: str, value: float, n: float = 1) -> None:
        """Record a number for this round's row; several calls give their mean weighted by `n`."""
        total, weight = self.logged.get(name, (0.0, 0.0))
        self.logged[name] = (total + float(value) * n, weight + n)

    def planted(self, clients: Sequence[int]) -> Tensor:
        """Return the planted group of each client, (n,) int64, -1 without one: the truth, for oracles and scores only."""
        return torch.as_tensor(self.federation.group[list(clients)])

    def probe(self) -> Tensor:
        """Return the inputs of the public set, (n, *input_shape) where the task is; see `public`."""
        return self.public()["x"]

    def public(self) -> Tree:
        """Return the public set (`federation.public`, or `federation.probe`) as one batch where the task is: x (n, *input_shape), y,
        further columns and w, all 1. Labels that are not known are -1 (numbers: 0). A visit has it as split "public".
        """
        rows = self.federation.public
        return self.task.batch({n: np.asarray(a)[rows] for n, a in self.federation.arrays.items()})

    # -- participation -----------------------------------------------------------------------------------------------

    def sample(self, n: int | None = None, *, where: Sequence[int] | np.ndarray | None = None) -> tuple[int, ...]:
        """Draw this round's clients by `federation.participation`, from a keyed stream that is the same for every method.

        n: how many (default `federation.per_round`); where: only these clients. Sorted; may be empty (Poisson, or nobody is there).
        Left out are stragglers where `local.work.late` says so, and who is not in time by `failures.stragglers`.
        """
        drawn = self._draw(n, where)
        if n is None and self._hurries:
            drawn = self._in_time(drawn)
        if self.config.local.work.late == "keep":
            return drawn
        late = set(stragglers.late(self.config, self.population, self.round).tolist())
        return tuple(c for c in drawn if c not in late)

    def _draw(self, n: int | None, where: Sequence[int] | np.ndarray | None) -> tuple[int, ...]:
        self._samples += 1
        rng = keys.numpy_again(keys.key(self.config.seed, self.round << 20, -1, f"participation {self._samples}"))
        among = self._everyone if where is None else _sorted(np.asarray(where, np.int64))
        if self._comes is not None:
            among = among[self._comes.mask(self.round)[among]]
        want = min(
            self.config.per_round() + self.config.failures.stragglers.over_select if n is None else n, len(among)
        )
        p = self.config.federation.participation
        if p.kind == "poisson" and n is None:
            q = want / max(1, len(among))
            return tuple(among[rng.random(len(among)) < q].tolist())
        if p.kind == "cyclic" and n is None:
            # One fixed shuffle, walked block by block, round after round.
            order = keys.numpy(keys.key(self.config.seed, 0, -1, "cyclic order")).permutation(among)
            start = (self.round - 1) * want % max(1, len(order))
            return tuple(sorted(np.take(order, np.arange(start, start + want), mode="wrap").tolist()))
        if self.config.federation.select != "random":
            return self._chosen(among, want, rng)
        return tuple(sorted(rng.choice(among, want, replace=False).tolist())) if want else ()

    def _chosen(self, among: np.ndarray, want: int, rng: np.random.Generator) -> tuple[int, ...]:
        """Return whom `federation.select` chooses, and note their turns."""
        turns = self._dispatcher.engine.get(selection.TURNS)
        ids = selection.choose(self.config.federation.select, among, want, rng, self.durations(), turns)
        self._dispatcher.engine.put(selection.TURNS, selection.after(turns, self.population, ids, self.round))
        return tuple(ids.tolist())

    def _in_time(self, drawn: tuple[int, ...]) -> tuple[int, ...]:
        """Return the drawn clients that meet the deadline; where more are drawn than are needed, the fastest `per_round` of them."""
        late = self.config.failures.stragglers
        deadline, took = late.deadline_s, self.durations()
        wanted = min(len(drawn), self.config.per_round()) if late.over_select else len(drawn)
        first = sorted((took[c], c) for c in drawn if deadline is None or took[c] <= deadline)[:wanted]
        if deadline is not None and len(first) < wanted:  # it has waited for the others in vain
            self._waited = max(self._waited, deadline)
        return tuple(sorted(c for _, c in first))

    def available(self) -> tuple[int, ...]:
        """Return who is there in this round, sorted: everybody, unless clients come by themselves (`federation.participation`) or have no
        row of a stream's present task."""
        there = self._everyone if self._comes is None else self._comes.there(self.round)
        return tuple((np.intersect1d(there, self._everyone) if self.whole.stages else there).tolist())

    def chances(self) -> Tensor:
        """Return the chance with which `sample()` draws each client in a round, (N,) float64. FailsAgain where nobody knows it."""
        if why := participation.unknown(self.config):
            raise FailsAgain(why[0])
        if self._comes is None:
            found = np.zeros(self.population)
            found[self._everyone] = min(1.0, self.config.per_round() / max(1, len(self._everyone)))
        else:
            found = self._comes.chances
        if self.config.local.work.late == "drop":
            found = found * (1 - len(stragglers.late(self.config, self.population, self.round)) / self.population)
        return torch.as_tensor(found)

    # -- simulated time ----------------------------------------------------------------------------------------------

    def durations(self, steps: Any = None) -> np.ndarray:
        """Return how long a visit takes each client by `devices`, (N,) float64 seconds: its local steps, and a model each way.

        steps: (N,) in place of those that the config asks for. One second for everybody under profile none.
        """
        n = self.population
        if self._devices is None:
            return np.ones(n)
        if steps is None and self._usual is not None and self._usual[0] is self.federation:
            return self._usual[1]
        told = self.method.visit_steps(self.federation)[:n] if steps is None else steps
        size: Any = tree.nbytes(self.task.params_like)
        if self.task.family is not None:
            size = np.array([tree.nbytes(t.params_like) for t in self.task.families.values()])[self.task.family[:n]]
        took = self._devices.seconds(np.arange(n), told, size, size)
        if steps is None:
            self._usual = self.federation, took
            took.flags.writeable = False
        return took

    def elapse(self, seconds: float) -> None:
        """Say how long this round takes on the clients' devices, where that is not until the slowest of each ask has replied."""
        self._elapsed = (self._elapsed or 0.0) + seconds

    @property
    def elapsed(self) -> float:
        """The simulated seconds of this round so far: what `elapse` was told, or until the slowest of each ask has replied."""
        return max(self._waited, self._dispatcher.simulated) if self._elapsed is None else self._elapsed

    def worked(self, start: float) -> list[Visits]:
        """Return the round's visits on the clients' devices; start: when it began. Of a method with a clock, those that began in it."""
        if self._elapsed is not None:
            return self.sent
        return [(ids, start + began, start + ended) for ids, began, ended in self._dispatcher.worked]

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask(
        self,
        visit: BoundVisit,
        to: Sequence[int],
        *,
        shared: Tree | None = None,
        mine: Mapping[int, Tree] | None = None,
        fold: Fold | Sequence[Fold] = (),
        keep: str | Sequence[str] = (),
        metered: bool = True,
    ) -> Replies:
        """Ask clients for one visit, wait for all of them, and return their `Replies`.

        Arguments:
            visit: one of the method's, `self.train`, or with arguments `self.score.with_(k=3)`.
            to: client ids, in any order, each once; nobody is allowed.
            shared: parts for everyone, name -> tree, as `wire.down` declares them.
            mine: client -> a small tree for it alone, of the same names for all.
            fold: what becomes of parts: `mean(...)`, `total(...)`, or several, each of another part.
            keep: folded parts that stay reachable for `gram`, `dot`, `linear`, `stacked` and `gather`.
            metered: false where a deployment's server would work this out from what it holds of each client: it runs where the
                client states are, and counts in no bytes and no visits.

        Raises TypeError if `visit` is no visit of the method, or if a part is not declared or not of its shape; ValueError if a
        client or a part is named twice. A client that fails is dropped, or ends the run with RunFailed, as
        `failures.client_error` says.

        Example: `fed` and `state` as `Method.round` is given them.

            >>> from rayfed import mean
            >>> got = fed.ask(fed.method.train, fed.sample(3), shared=state, fold=mean("delta"))
            >>> len(got), got.failures
            (3, {})
            >>> got.folded["delta"].keys() == state["model"].keys()
            True
        """
        name, arguments = visits.require_visit(visit, self.method).call
        folds = (fold,) if isinstance(fold, Fold) else tuple(fold)
        if len({f.part for f in folds}) < len(folds):
            raise ValueError(f"{name}: a part is folded twice in one ask: {', '.join(f.part for f in folds)}")
        if len(set(to)) != len(to):
            raise ValueError(f"{name}: a client is asked twice in one ask")
        shared, mine = shared or {}, mine or {}
        sent = set(shared) | {n for m in mine.values() for n in m}
        if unknown := sorted(sent - self.method.wire.down.keys()):
            raise TypeError(f"{name}: parts {unknown} go down but the wire declares {sorted(self.method.wire.down)}")
        return self._dispatcher.ask(
            name,
            to,
            arguments=arguments,
            shared=shared,
            mine=mine,
            folds=folds,
            keep=(keep,) if isinstance(keep, str) else tuple(keep),
            metered=metered,
        )


def _sorted(ids: np.ndarray) -> np.ndarray:
    """Return ids in order; of a large population's, which mostly come so, a look costs a hundredth of sorting them."""
    return ids if bool((ids[1:] >= ids[:-1]).all()) else np.sort(ids)
