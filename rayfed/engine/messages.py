"""What server and workers send each other: a job with its request, and the job's answer.

Everything here is frozen and small: names, numbers, ids and NumPy arrays. Payloads stay behind handles, which the pool
resolves to values before a worker sees them. No closure travels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.fold import Fold, Folded
from rayfed.tree import Tree

if TYPE_CHECKING:
    import numpy as np

    from rayfed.engine.evaluation import Evaluation
    from rayfed.engine.failures import Failure
    from rayfed.transform.chain import Asked
    from rayfed.visits import Arguments


@dataclass(frozen=True)
class VisitCall:
    """One cohort asked for one visit, or for one evaluation.

    visit: the name of a method's visit, or an evaluation; dispatch: the ask's number, which its keys are derived from;
    shared: names of the shared parts, whose values come first; mine: tree with leaves (k, ...), a row for each client;
    states: per client (number of the value that holds its state, row in it), None for a client without one; folds, keep:
    what becomes of the parts that are sent; score_local: whether a training visit also scores its locally trained model;
    arguments: the visit's own; rows: of a scoring of rows, the rows of the data arrays in each piece, (k, b); rehearsal: whether
    attackers are asked what they would send as honest clients; crafted: whether the last value is what colluding attackers send;
    transforms: what transforms of updates are told of the ask, NumPy arrays, None where none act on it; family: the number of the
    clients' (`rayfed.task.Task.families`).
    """

    visit: str | Evaluation
    clients: tuple[int, ...]
    dispatch: int
    round: int
    rounds: int
    shared: tuple[str, ...] = ()
    mine: Tree = field(default_factory=dict)
    states: tuple[tuple[int, int] | None, ...] = ()
    folds: tuple[Fold, ...] = ()
    keep: tuple[str, ...] = ()
    score_local: bool = False
    arguments: Arguments = ()
    rows: np.ndarray | None = None
    rehearsal: bool = False
    crafted: bool = False
    transforms: Asked | None = None
    family: int = 0


@dataclass(frozen=True)
class LinearCall:
    """`weights` (K, c) times a part of one call's c replies; gives K stacked trees, of some entries where `names` has any."""

    part: str
    weights: np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class PickCall:
    """The entries `names` of a part of one call's replies."""

    part: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class GramCall:
    """Inner products of a part between the replies of two calls, (a, b); apart: of each of its entries by itself, in a tree."""

    part: str
    apart: bool = False


@dataclass(frozen=True)
class DotCall:
    """Inner products of a part of one call's c replies with K trees of the server, (c, K) float64."""

    part: str


@dataclass(frozen=True)
class CombineCall:
    """Coordinates `begin` to `end` of a part of all calls' replies, each combined by a rule; gives (G, end - begin).

    paths: of the part's leaves, in whose order coordinates count; picks: which of the replies, in the order of the calls, for each
    of G results; attack: whose `craft` combines them (the number in the config), None for the rule of aggregation; asked: how many
    clients the round asks.
    """

    part: str
    paths: tuple[tuple[str, ...], ...]
    begin: int
    end: int
    picks: tuple[np.ndarray, ...]
    attack: int | None = None
    asked: int = 0


@dataclass(frozen=True)
class TimingCall:
    """How long one local step takes under each executor, for cohorts of `cohort` clients."""

    cohort: int


Request = VisitCall | LinearCall | PickCall | GramCall | DotCall | CombineCall | TimingCall

_LABELS = {
    LinearCall: "linear", PickCall: "pick", GramCall: "gram", DotCall: "dot", CombineCall: "combine", TimingCall: "timing"
}  # fmt: skip


def label(request: Request) -> str:
    """Name a request for a reader: the kind of job and, of a visit, which one."""
    return f"visit:{request.visit}" if isinstance(request, VisitCall) else _LABELS[type(request)]


@dataclass(frozen=True)
class Job:
    """A request of one run; handles: what the pool resolves to the request's values, in this order."""

    run: str
    request: Request
    handles: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CallResult:
    """What a visit call gives, small enough to travel to the server; its large parts and client states stay behind.

    clients: those whose replies are here, the order of all that has rows; failures: the others and why; examples, steps,
    ranks: of each reply (see `rayfed.fed.Reply`); folded: NumPy totals of each fold, None where the pool holds them as an
    object of their own; small: unfolded parts, leaves (k, ...); large: names of the parts that stayed; has_states: whether new
    client states stayed; local_scores: client -> sums of its locally trained model's scores; bytes_up: what the replies cost
    on the wire; ranks_before: the rank that a client's state had before; seconds: wall time of the call; notes: sentences on
    what its process has switched off, and why (see `rayfed.execute.tuning.replay`); crossed: bytes (up, down)
    that crossed the cuts of each reply's network, [] where it is whole.
    """

    clients: list[int]
    failures: dict[int, Failure]
    examples: list[int]
    steps: list[int]
    ranks: list[int]
    folded: Folded | None
    small: Tree
    large: tuple[str, ...]
    has_states: bool
    local_scores: dict[int, dict[str, float]]
    bytes_up: int
    ranks_before: dict[int, int]
    seconds: float
    notes: tuple[str, ...] = ()
    crossed: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Value:
    """What every other request gives: a tree of NumPy arrays, or a `Timing`; notes: see `CallResult`."""

    value: Any
    notes: tuple[str, ...] = ()


class Answer(NamedTuple):
    """A finished job where it was done: the result to send, large parts and new client states, leaves (k, ...), as NumPy."""

    result: CallResult | Value
    large: Tree | None = None
    states: Tree | None = None
