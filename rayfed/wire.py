"""What travels between server and clients, and what each side keeps: named parts and their shapes.

A shape is an object that checks a tree, makes its zero and prints itself:

    PARAMS                        the model's trained parameters
    params_of("head", "lora_A")   those of the classifier, and those whose names have `lora_A` between their dots
    OWN_PARAMS                    those of the client's own model, where clients have several (families)
    SCALAR, CLASSES               one number, (C,) numbers
    tensor("N", 3, dtype="int64") a tensor: letters and numbers are its axes, C the classes
    stack("K", PARAMS)            K of a shape along a first axis
    ANY                           any tree, unchecked
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import tree
from rayfed.errors import RunFailed
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.task import Task
    from rayfed.tree import Tree


class Shape:
    """Describe a part's tree: check one, make its zero, print it as `rayfed methods NAME` shows it."""

    def check(self, part: Tree, task: Task, lead: int = 1) -> str | None:
        """Return what is wrong with a tree, as the end of a sentence that begins with its name; None if nothing is.

        lead: leading axes that are not the shape's: 1 for the parts of a cohort, (k, ...).
        """
        return None

    def zeros(self, task: Task) -> Tree | Tensor:
        """Return what stands for a sum of no parts. RunFailed where the shape alone does not give it."""
        raise RunFailed(f"a part declared {str(self)!r} has no zero")


@dataclass(frozen=True)
class Params(Shape):
    """Describe the entries of the model, {name: tensor}; with `words` those whose names have one of them between their dots, `head`
    taking the classifier's (of an own network that calls nothing so, the last linear layer's), `norm` the normalisation layers',
    `buffers` what training writes; others: all but those; own: they may differ between families of models, so that each family is
    asked by itself."""

    words: tuple[str, ...] = ()
    others: bool = False
    own: bool = False

    def select(self, params: Tree, task: Task) -> Tree:
        """Return the entries of a tree of all trained parameters that are meant."""
        if not self.words:
            return params
        head = task.head
        if "head" in self.words and not head and task.per_class:
            head = task.classifier_names
        groups = {"head": head, "norm": task.norms, "buffers": task.buffers}
        named = {n for word in self.words for n in groups.get(word, ())}
        words = set(self.words) - set(groups)
        return {n: p for n, p in params.items() if (n in named or bool(words & set(n.split(".")))) != self.others}

    def check(self, part: Tree, task: Task, lead: int = 1) -> str | None:
        wanted = {n: tuple(p.shape) for n, p in self.select(task.params_like, task).items()}
        found = {n: tuple(p.shape[lead:]) for n, p in part.items()} if isinstance(part, Mapping) else None
        return None if found == wanted else "its names or shapes are not the model's"

    def zeros(self, task: Task) -> Tree | Tensor:
        return tree.zeros(self.select(task.params_like, task))

    def __str__(self) -> str:
        if self.own:
            return "own params"
        return f"params {'but' if self.others else 'of'} {', '.join(self.words)}" if self.words else "params"


@dataclass(frozen=True)
class Array(Shape):
    """Describe one tensor. axes: numbers are sizes, "C" is the number of classes, other letters stand for any size."""

    axes: tuple[str | int, ...] = ()
    dtype: str | None = None

    def check(self, part: Tree, task: Task, lead: int = 1) -> str | None:
        if isinstance(part, Mapping):
            return "is a tree"
        shape = tuple(part.shape[lead:])
        if len(shape) != len(self.axes):
            return f"has {len(shape)} axes"
        sizes = [task.classes if axis == "C" else axis for axis in self.axes]
        if any(isinstance(size, int) and size != n for size, n in zip(sizes, shape, strict=True)):
            return f"has shape {shape}"
        found = str(part.dtype).removeprefix("torch.")
        return f"is {part.dtype}" if self.dtype and found != self.dtype else None

    def zeros(self, task: Task) -> Tree | Tensor:
        sizes = [task.classes if axis == "C" else axis for axis in self.axes]
        known = [size for size in sizes if isinstance(size, int)]
        return torch.zeros(known, dtype=task.dtype) if len(known) == len(sizes) else super().zeros(task)

    def __str__(self) -> str:
        if not self.axes and not self.dtype:
            return "scalar"
        axes = ", ".join(map(str, self.axes)) + ("," if len(self.axes) == 1 else "")
        return f"({axes}) {self.dtype or ''}".rstrip()


@dataclass(frozen=True)
class Stack(Shape):
    """Describe `count` (a letter: any number) of a shape along a first axis of every leaf."""

    count: str
    shape: Shape

    def check(self, part: Tree, task: Task, lead: int = 1) -> str | None:
        return self.shape.check(part, task, lead + 1)

    def __str__(self) -> str:
        return f"{self.count} x {self.shape}"


@dataclass(frozen=True)
class Anything(Shape):
    """Describe any tree."""

    def __str__(self) -> str:
        return "any"


def params_of(*words: str) -> Params:
    """Return the shape of the entries whose names have one of `words` between their dots; `head` takes the classifier's, `norm`
    those of normalisation layers with running statistics, `buffers` what training forward passes write."""
    return Params(words)


def params_but(*words: str) -> Params:
    """Return the shape of the entries that `params_of(*words)` leaves out."""
    return Params(words, others=True)


def tensor(*axes: str | int, dtype: Any = None) -> Array:
    """Return the shape of one tensor of these axes: numbers, "C" for the classes, other letters for any size; none is one number.

    dtype: torch's, or its name; None takes any.
    """
    return Array(axes, None if dtype is None else str(dtype).removeprefix("torch."))


def stack(count: str, shape: Shape) -> Stack:
    """Return the shape of `count`, a letter, of a shape along a first axis: stack("K", PARAMS) is K models."""
    return Stack(count, shape)


PARAMS, OWN_PARAMS, SCALAR, CLASSES, ANY = Params(), Params(own=True), tensor(), tensor("C"), Anything()


@dataclass(frozen=True)
class Part:
    """Declare a named part of a payload or a state.

    Arguments:
        shape: one of this module's.
        update: whether transforms act on it.
        private: whether it never leaves the client.
        note: one sentence about it, for `rayfed methods NAME`.
        routed: whether it is a stack of K rows of which a deployment sends each client only one (its cluster's, or a mixture made
            at the server), so that `bytes/down` counts one.
        robust: of several updates, whether the config's rule of aggregation acts on this one; an only update is ruled anyway.

    Raises TypeError if the shape is none.

    Example:

        >>> from types import SimpleNamespace
        >>> part = Part(stack("K", PARAMS), note="the experts")
        >>> str(part.shape)
        'K x params'
        >>> CLASSES.check(torch.zeros(5, 3), SimpleNamespace(classes=10))  # of five clients
        'has shape (3,)'
    """

    shape: Shape
    update: bool = False
    private: bool = False
    note: str = ""
    routed: bool = False
    robust: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Shape):
            raise TypeError(
                f"Part: {self.shape!r} found; a shape of rayfed.wire expected, such as PARAMS or tensor('C')"
            )


class Wire(NamedTuple):
    """Declare what travels and what is kept, name -> `Part`.

    Arguments:
        down: parts from the server to clients, `shared` and `mine` alike.
        up: parts that visits send.
        keep: a client's state between visits, which `Method.own_init` begins; all of them, always.
        server: the server's state, which `Method.init` begins; all of them, always.

    What is sent or kept under another name or in another shape raises TypeError in the first round, with the part's name.

    Example:

        >>> wire = Wire(
        ...     down={"model": Part(PARAMS)},
        ...     up={"delta": Part(PARAMS, update=True), "counts": Part(tensor("C", dtype="int64"))},
        ...     server={"model": Part(PARAMS)},
        ... )
        >>> {name: str(part.shape) for name, part in wire.up.items()}
        {'delta': 'params', 'counts': '(C,) int64'}
    """

    down: dict[str, Part] = {}  # noqa: RUF012  (a NamedTuple's default, never written to)
    up: dict[str, Part] = {}  # noqa: RUF012
    keep: dict[str, Part] = {}  # noqa: RUF012
    server: dict[str, Part] = {}  # noqa: RUF012


def check_parts(declared: Mapping[str, Part], parts: Tree, task: Task, where: str, complete: bool = False) -> None:
    """Raise TypeError where a part, leaves (k, ...), is not declared or not of the declared shape.

    where: what the sentence begins with; complete: all declared parts must be there.
    """
    unknown = [n for n in parts if n not in declared]
    missing = [n for n in declared if n not in parts] if complete else []
    if unknown or missing:
        raise TypeError(f"{where}: parts {sorted(parts)} against the wire's {sorted(declared)}")
    for name, part in parts.items():
        problem = declared[name].shape.check(part, task)
        if problem:
            raise TypeError(f"{where}: part {name!r} is declared {str(declared[name].shape)!r} but {problem}")
