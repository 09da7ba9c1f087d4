"""What one client does when it is asked, written for ONE client and pure in tensors.

A visit is `begin -> step per batch -> end`. The executors run it one client after another (`loop`) or for a whole
cohort at once (`vmap`); batching, padding, masking of finished clients, keys and step counts are theirs, so none of it
appears in a method.

Rules for tensors inside a visit: no `.item()`, no `if` on a tensor, no in-place writes, the carry keeps its structure. What it
calls may depend on shapes and settings alone: from the fourth call of a piece on, the same kernels are replayed
(`execute.tuning.replay`).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
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
    """What a visit is given for its client.

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
    each: str = ""


def epochs(n: int, split: str = "train", batches: int = 1) -> Over:
    """Run over n passes, each in a fresh order; `batches` > 1 gives every step a tuple of that many consecutive batches."""
    return Over("epochs", n, split, batches)


def steps(n: int, split: str = "train", batches: int = 1, each: str = "") -> Over:
    """Run over n steps of reshuffled passes; `each` names the part of `mine` that says how many of them each client does, at least one."""
    return Over("steps", n, split, batches, each)


def once(split: str = "train") -> Over:
    """Run over one pass in storage order, in large batches; for measuring."""
    return Over("once", 1, split)


def whole(split: str = "train") -> Over:
    """Run over one step with all examples as one batch."""
    return Over("whole", 1, split)


def nothing(n: int) -> Over:
    """Run over n steps without data (`batch` is {}); keys only."""
    return Over("nothing", n, "")


class Phase(NamedTuple):
    """`step(carry, batch, key) -> carry` for each batch of `over`; `enter(client, carry) -> carry` may reshape it once before.

    counts: whether its steps are training, so that `info.steps` and `info.sum_lr` grow; false where it only measures.
    falls: whether the rate falls from info.lr to zero over its steps (`schedules`), which `info.sum_lr` then adds up.
    local_steps: for how many local steps one of its steps stands, where it does several itself.
    """

    over: Over
    step: Callable[[Tree, Batch, Tensor], Tree]
    enter: Callable[[ClientContext, Tree], Tree] | None = None
    counts: bool = True
    falls: bool = False
    local_steps: int = 1

    def passed(self, info: Info, done: Tensor) -> Info:
        """Return `info` after its `done` real steps."""
        if not self.counts:
            return info
        # lr (T + T-1 + ... + 1) / T = lr (T + 1) / 2
        done = done * self.local_steps
        rates = (done + done.clamp(max=1)) / 2 if self.falls else done
        return info._replace(steps=info.steps + done, sum_lr=info.sum_lr + rates * info.lr)


class Visit(NamedTuple):
    """Describe what one client does, in three pieces: pure functions of tensors that any executor can call.

    Arguments:
        begin: begin(client) -> carry, from what the client was sent and what it keeps (a `ClientContext`).
        phases: what the visit runs over, one after another; () is no step at all.
        end: end(client, carry) -> (parts sent, the client's new state).
        vectorize: True, or the reason why `vmap` cannot run it, which it then is not asked to.
        local: carry -> the locally trained parameters, if the visit trains a model; the engine scores them as `local`.

    A carry is a dict of tensors that keeps its names, shapes and types from step to step. What `end` sends must be declared in
    `wire.up`, what it keeps in `wire.keep`; TypeError names the part otherwise.

    Example: counting a client's examples; by hand, as an executor does it.

        >>> counting = Visit(
        ...     begin=lambda client: {"n": torch.zeros(())},
        ...     phases=[Phase(once(), lambda carry, batch, key: {"n": carry["n"] + batch["w"].sum()}, counts=False)],
        ...     end=lambda client, carry: ({"n": carry["n"]}, client.own),
        ... )
        >>> client = ClientContext(info=None, shared={}, mine={}, own={})
        >>> carry = counting.begin(client)
        >>> carry = counting.phases[0].step(carry, {"w": torch.tensor([1.0, 1.0, 0.0])}, key=torch.tensor(7))
        >>> counting.end(client, carry)
        ({'n': tensor(2.)}, {})
    """

    begin: Callable[[ClientContext], Tree]
    phases: Sequence[Phase]
    end: Callable[[ClientContext, Tree], tuple[Tree, Tree]]
    vectorize: bool | str = True
    local: Callable[[Tree], Tree] | None = None


def model_of(choose: Callable[[ClientContext], Tree]) -> Visit:
    """Return a visit without work that sends {"model": choose(client)}: the form of most `Method.view`."""
    return Visit(lambda client: {}, (), lambda client, carry: ({"model": choose(client)}, client.own))


def measure(
    fn: Callable[[Tree, Batch], Tree],
    like: Callable[[ClientContext], Tree],
    *,
    over: Over | None = None,
    reduce: str = "mean",
    model: Callable[[ClientContext], Tree] | None = None,
) -> Visit:
    """Return a visit that sends numbers about the client's data: losses of k models, class counts, prototypes, predictions.

    Arguments:
        fn: fn(model, batch) -> tree with leaves (B, ...), one row per example.
        like: like(client) -> zeros of one row's shapes.
        over: what it runs over; default one pass over the train split in large batches, `once()`.
        reduce: "mean" or "sum" of the rows over the real examples.
        model: model(client) -> what is handed to fn; default all of `client.shared`.

    Sends the reduced tree's entries and `n` (), the number of examples; keeps the client's state as it is. Its steps count as
    no training.

    Example: the mean of a client's inputs under a shared scale, by hand.

        >>> made = measure(lambda model, batch: {"x": model["scale"] * batch["x"]}, lambda client: {"x": torch.zeros(())})
        >>> client = ClientContext(info=None, shared={"scale": torch.tensor(2.0)}, mine={}, own={})
        >>> batch = {"x": torch.tensor([1.0, 3.0, 9.0]), "w": torch.tensor([1.0, 1.0, 0.0])}
        >>> carry = made.phases[0].step(made.begin(client), batch, key=torch.tensor(7))
        >>> made.end(client, carry)
        ({'x': tensor(4.), 'n': tensor(2.)}, {})
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
    """Return {"sum": sums + rows weighted by w, "n": n + sum of w}; rows have leaves (B, ...)."""
    return {
        "sum": tree.map(lambda s, r: s + torch.tensordot(w.to(r.dtype), r, dims=([0], [0])), sums["sum"], rows),
        "n": sums["n"] + w.sum(),
    }


def average(sums: Tree) -> Tree:
    """Return the mean of what `accumulate` summed; zeros where there was no example."""
    return tree.scale(sums["sum"], 1.0 / sums["n"].clamp(min=1))


# -- the visits of a method --------------------------------------------------------------------------------------------


class VisitMethod:
    """Hold a function `make(self, task, ...) -> Visit` of a method's class; made by `visit`."""

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
    """Register a method of a `Method` as one of its visits, which `fed.ask` then takes as `self.NAME`.

    Arguments:
        make: make(self, task, ...) -> Visit. It is called once in each process, so it must depend on settings, task and its
            arguments alone. Arguments after the task are given by `self.NAME.with_(...)`, as plain values: numbers, words, None
            or tuples of them. One visit is kept for each, so what changes from round to round goes into `shared`.

    Returns what stands in the class in the function's place: of an instance, a `BoundVisit`.

    `fed.ask` raises TypeError for a function that is not registered, or is another class's.

    Example:

        >>> from types import SimpleNamespace
        >>> from rayfed import Method
        >>> class Scores(Method):
        ...     @visit
        ...     def score(self, task, k=1):
        ...         return model_of(lambda client: client.shared["model"])
        >>> method = Scores(settings=None, config=SimpleNamespace(local=None))
        >>> method.score.with_(k=3).call
        ('score', (('k', 3),))
    """
    return VisitMethod(make)


@dataclass(frozen=True)
class BoundVisit:
    """Name a visit of one method, as `fed.ask` takes it: `self.train`, or `self.score.with_(k=3)`. Called with a task it makes it."""

    method: Method
    made_by: VisitMethod
    arguments: Arguments = ()

    @property
    def name(self) -> str:
        return self.made_by.name

    @property
    def call(self) -> tuple[str, Arguments]:
        """Return (name, arguments): what names it to a worker, which has the method itself."""
        return self.name, self.arguments

    def __call__(self, task: Task) -> Visit:
        return self.made_by.make(self.method, task, **dict(self.arguments))

    def with_(self, **arguments: Any) -> BoundVisit:
        """Return the same visit with these arguments; TypeError where one is no plain value."""
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


def require_visit(asked: Any, method: Method) -> BoundVisit:
    """Return what was given to `fed.ask`, if it is a visit of this method with all its arguments; TypeError otherwise."""
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


def visits_of(cls: type) -> dict[str, VisitMethod]:
    """Return the visits of a method's class by name, its bases' included."""
    found = {n: getattr(cls, n, None) for n in dir(cls)}
    return {n: v for n, v in found.items() if isinstance(v, VisitMethod)}


def undecorated(cls: type) -> dict[str, str]:
    """Return name -> why it has to be a visit, of the functions of a method's class that lack `@visit`: they stand in the place of a
    base's visit, or the class asks for them."""
    found: dict[str, str] = {}
    for name in dir(cls):
        if inspect.isfunction(getattr(cls, name, None)):
            base = next((b for b in cls.__mro__ if isinstance(vars(b).get(name), VisitMethod)), None)
            if base is not None:
                found[name] = f"it stands in the place of {base.__name__}.{name}, which is one"
            elif any(name in _asked_for(b) for b in cls.__mro__[:-1]):
                found[name] = "`ask` is given it"
    return found


@cache
def _asked_for(cls: type) -> frozenset[str]:
    """Return the names X of every `....ask(self.X, ...)` and `....ask(self.X.with_(...), ...)` in a class's text."""
    try:
        text = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):  # there is no text: the first round will show
        return frozenset()
    names = set()
    for call in ast.walk(text):
        if not (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "ask"
            and call.args
        ):
            continue
        asked = call.args[0]
        if isinstance(asked, ast.Call) and isinstance(asked.func, ast.Attribute) and asked.func.attr == "with_":
            asked = asked.func.value
        if isinstance(asked, ast.Attribute) and isinstance(asked.value, ast.Name) and asked.value.id == "self":
            names.add(asked.attr)
    return frozenset(names)


def without_arguments(method: Method) -> dict[str, Callable[[Task], Visit]]:
    """Return name -> what makes it, of `view` and each visit that can be made without arguments."""
    makers: dict[str, Callable[[Task], Visit]] = {"view": method.view}
    for name, made_by in visits_of(type(method)).items():
        if all(p.default is not p.empty for p in list(made_by.signature.parameters.values())[2:]):
            makers[name] = getattr(method, name)
    return dict(sorted(makers.items()))


def refusals(method: Method, task: Task) -> dict[str, str]:
    """Return name -> why `vmap` cannot run it, of the visits of `without_arguments`."""
    reasons = {name: make(task).vectorize for name, make in without_arguments(method).items()}
    return {name: reason for name, reason in reasons.items() if isinstance(reason, str)}
