"""What one client does when it is asked, written for ONE client and pure in tensors.

A visit is `begin -> step per batch -> end`. The executors run it one client after another (`loop`) or for a whole
cohort at once (`vmap`); batching, padding, masking of finished clients, keys and step counts are theirs, so none of it
appears in a method. A visit that counts its client's examples:

    @visit
    def count(self, task):
        return Visit(begin=lambda client: {"n": torch.zeros(())},
                     phases=[Phase(once(), lambda carry, batch, key: {"n": carry["n"] + batch["w"].sum()})],
                     end=lambda client, carry: ({"n": carry["n"]}, client.own))

Rules for tensors inside a visit: no `.item()`, no `if` on a tensor, no in-place writes, the carry keeps its structure. What it
calls may depend on shapes and settings alone: from the fourth call of a piece on, the same kernels are replayed
(`execute.tuning.replay`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from rayfed import tree
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.method import Method
    from rayfed.task import Task

Batch = Any  # {"x": (B, ...), "y": (B,), "w": (B,) 1 or 0 on padding}, or a tuple of such where Over.batches > 1
Arguments = tuple[tuple[str, Any], ...]  # of a visit that takes some: (name, plain value), by name


class Info(NamedTuple):
    """What a visit knows of its client and its round; 0-d tensors but for `counts`.

    client: id; examples: train examples; counts: (C,) train examples per class; steps: real steps taken so far;
    ahead: real steps of the phase that `enter` begins; lr: the learning rate that the visit begins with; sum_lr: the rate
    summed over the real steps; round, rounds: from 1; secret: a key that all clients of the round share and the server
    program is not given; rank: of its LoRA adapter, 0 without one.
    """

    client: Tensor
    examples: Tensor
    counts: Tensor
    steps: Tensor
    ahead: Tensor
    lr: Tensor
    sum_lr: Tensor
    round: Tensor
    rounds: Tensor
    secret: Tensor
    rank: Tensor


class ClientContext(NamedTuple):
    """What one client has in hand in a visit.

    info: of the client and its round; shared: the parts that went to everyone; mine: the parts for this client alone; own: its
    private state.
    """

    info: Info
    shared: Tree
    mine: Tree
    own: Tree


@dataclass(frozen=True)
class Over:
    """What a phase runs over; made by `epochs`, `steps`, `once`, `whole`, `nothing`."""

    kind: str
    n: int = 1
    split: str = "train"
    batches: int = 1


def epochs(n: int, split: str = "train", batches: int = 1) -> Over:
    """n passes in a fresh order each; `batches` > 1 hands every step a tuple of that many consecutive batches."""
    return Over("epochs", n, split, batches)


def steps(n: int, split: str = "train", batches: int = 1) -> Over:
    """n steps over reshuffled passes."""
    return Over("steps", n, split, batches)


def once(split: str = "train") -> Over:
    """One pass in storage order, in large batches; for measuring."""
    return Over("once", 1, split)


def whole(split: str = "train") -> Over:
    """One step with all examples as one batch."""
    return Over("whole", 1, split)


def nothing(n: int) -> Over:
    """n steps without data (`batch` is {}); keys only."""
    return Over("nothing", n, "")


class Phase(NamedTuple):
    """`step(carry, batch, key) -> carry` for each batch of `over`; `enter(client, carry) -> carry` may reshape it once before.

    counts: whether its steps are training, so that `info.steps` and `info.sum_lr` grow; false where it only measures.
    falls: whether the rate falls from info.lr to zero over its steps (`schedules`), which `info.sum_lr` then adds up.
    """

    over: Over
    step: Callable[[Tree, Batch, Tensor], Tree]
    enter: Callable[[ClientContext, Tree], Tree] | None = None
    counts: bool = True
    falls: bool = False

    def passed(self, info: Info, done: Tensor) -> Info:
        """`info` after its `done` real steps."""
        if not self.counts:
            return info
        # lr (T + T-1 + ... + 1) / T = lr (T + 1) / 2
        rates = (done + done.clamp(max=1)) / 2 if self.falls else done
        return info._replace(steps=info.steps + done, sum_lr=info.sum_lr + rates * info.lr)


class Visit(NamedTuple):
    """begin(client) -> carry; phases; end(client, carry) -> (parts sent, new own), of a `ClientContext`.

    `vectorize`: True, or the reason why `vmap` cannot run it. `local`: carry -> the locally trained parameters, if the
    visit trains a model (the engine then scores it as `local`).
    """

    begin: Callable[[ClientContext], Tree]
    phases: Sequence[Phase]
    end: Callable[[ClientContext, Tree], tuple[Tree, Tree]]
    vectorize: bool | str = True
    local: Callable[[Tree], Tree] | None = None


def model_of(choose: Callable[[ClientContext], Tree]) -> Visit:
    """A visit without work: {"model": choose(client)}, the form of most `Method.view`."""
    return Visit(lambda client: {}, (), lambda client, carry: ({"model": choose(client)}, client.own))


def measure(
    fn: Callable[[Tree, Batch], Tree],
    like: Callable[[ClientContext], Tree],
    *,
    over: Over | None = None,
    reduce: str = "mean",
    model: Callable[[ClientContext], Tree] | None = None,
) -> Visit:
    """A visit that sends numbers about the client's data: losses of k models, class counts, prototypes, predictions.

    fn(model, batch) -> tree with leaves (B, ...), one row per example; `like(client)` gives zeros of
    the rows' shapes; the rows are summed over the real examples (reduce "sum") or averaged ("mean"), and the number of
    examples is sent beside them as `n`. `model` picks what is handed to fn (default: all of shared).
    """

    def begin(client: ClientContext) -> Tree:
        zero = like(client)
        return {
            "sum": zero,
            "n": torch.zeros_like(tree.values(zero)[0].sum()),
            "model": model(client) if model else client.shared,
        }

    def step(carry: Tree, batch: Batch, key: Tensor) -> Tree:
        return {**carry, **accumulate(carry, fn(carry["model"], batch), batch["w"])}

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        return {**(average(carry) if reduce == "mean" else carry["sum"]), "n": carry["n"]}, client.own

    return Visit(begin, [Phase(over or once(), step, counts=False)], end)


def accumulate(sums: Tree, rows: Tree, w: Tensor) -> Tree:
    """{"sum": sums + rows weighted by w, "n": n + sum of w}; rows have leaves (B, ...)."""
    return {
        "sum": tree.map(lambda s, r: s + torch.tensordot(w.to(r.dtype), r, dims=([0], [0])), sums["sum"], rows),
        "n": sums["n"] + w.sum(),
    }


def average(sums: Tree) -> Tree:
    """The mean of what `accumulate` summed; zeros where there was no example."""
    return tree.scale(sums["sum"], 1.0 / sums["n"].clamp(min=1))


# -- the visits of a method --------------------------------------------------------------------------------------------


class VisitMethod:
    """A function `make(self, task, ...) -> Visit` of a method's class; made by `visit`."""

    def __init__(self, make: Callable[..., Visit]):
        self.make, self.name, self.signature = make, make.__name__, inspect.signature(make)
        self.__doc__ = make.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, method: None, owner: type) -> VisitMethod: ...
    @overload
    def __get__(self, method: Method, owner: type) -> BoundVisit: ...
    def __get__(self, method: Any, owner: type) -> Any:
        return self if method is None else BoundVisit(method, self)


def visit(make: Callable[..., Visit]) -> VisitMethod:
    """Register `make(self, task, ...) -> Visit` as a visit of its class, which `fed.ask` then takes as `self.NAME`."""
    return VisitMethod(make)


@dataclass(frozen=True)
class BoundVisit:
    """A visit of one method, as `fed.ask` takes it: `self.train`, or `self.score.with_(k=3)`. Called with a task it makes it."""

    method: Method
    made_by: VisitMethod
    arguments: Arguments = ()

    @property
    def name(self) -> str:
        return self.made_by.name

    @property
    def call(self) -> tuple[str, Arguments]:
        """What names it to a worker, which has the method itself."""
        return self.name, self.arguments

    def __call__(self, task: Task) -> Visit:
        return self.made_by.make(self.method, task, **dict(self.arguments))

    def with_(self, **arguments: Any) -> BoundVisit:
        """The same with these arguments. They are plain values, for they travel with each call and one visit is kept of each: what
        changes from round to round goes into `shared`."""
        for name, value in arguments.items():
            if not _is_plain(value):
                raise TypeError(
                    f"{_place(self.method, self.name)}: argument {name} is a {type(value).__name__}; "
                    "allowed: numbers, words, None and tuples of them (a tensor goes into shared or mine)"
                )
        return replace(self, arguments=tuple(sorted({**dict(self.arguments), **arguments}.items())))


def _is_plain(value: Any) -> bool:
    return (
        all(map(_is_plain, value)) if type(value) is tuple else value is None or type(value) in (bool, int, float, str)
    )


def _place(method: Method, name: str) -> str:
    return f"{type(method).__name__}.{name}"


def require(asked: Any, method: Method) -> BoundVisit:
    """What was given to `fed.ask`, if it is a visit of this method with all its arguments; TypeError otherwise."""
    if not isinstance(asked, BoundVisit):
        asked = asked.make if isinstance(asked, VisitMethod) else asked
        kind, name = type(asked).__name__, getattr(asked, "__qualname__", "")
        found = repr(asked) if isinstance(asked, str) else f"{kind} {name}".rstrip()
        raise TypeError(
            f"ask: {found} found; what is asked for is a method of {type(method).__name__} decorated with @visit"
        )
    if getattr(type(method), asked.name, None) is not asked.made_by:
        raise TypeError(
            f"ask: {asked.made_by.make.__qualname__} found, which is not {_place(method, asked.name)}; "
            f"what is asked for is a method of {type(method).__name__} decorated with @visit"
        )
    try:
        asked.made_by.signature.bind(method, None, **dict(asked.arguments))
    except TypeError as error:
        raise TypeError(f"{_place(method, asked.name)}: {error}; arguments are given by `.with_(...)`") from None
    return asked


def registered(cls: type) -> dict[str, VisitMethod]:
    """The visits of a method's class by name, its bases' included."""
    found = {n: getattr(cls, n, None) for n in dir(cls)}
    return {n: v for n, v in found.items() if isinstance(v, VisitMethod)}


def refusals(method: Method, task: Task) -> dict[str, str]:
    """Name -> why `vmap` cannot run it, for `view` and each visit that can be made without arguments."""
    makers: dict[str, Callable[[Task], Visit]] = {"view": method.view}
    for name, made_by in registered(type(method)).items():
        if all(p.default is not p.empty for p in list(made_by.signature.parameters.values())[2:]):
            makers[name] = getattr(method, name)
    reasons = {name: makers[name](task).vectorize for name in sorted(makers)}
    return {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
