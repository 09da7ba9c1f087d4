"""A training step of k clients at once as a program: Python text that calls kernels, for any k.

The vectorised step is recorded (`replay.Tape`) for two clients and for three. Where the two recordings are the same but for
whole numbers, each of these is linear in k, which gives the text for any number of clients. What a text says is thereby all
that its compiled form depends on: its digest names that (`compiler.py`), and another process needs nothing else to make it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.execute.tuning import replay
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

FEW, MORE = 2, 3  # clients that are recorded
NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")  # whole numbers by themselves


INPUT = re.compile(r"\bi\[(\d+)\]")


class NoProgram(Exception):
    """A step that is no program; the text says why."""


class Leaf(NamedTuple):
    """A tensor that a program takes: its shape without the clients' axis (whole where it has none), dtype, whether it has one."""

    shape: tuple[int, ...]
    dtype: str
    each: bool


class Program(NamedTuple):
    """A step for any number of clients.

    text: JSON that says what is computed: the inputs, the lines, the outputs' names; taken: positions of the step's inputs that
    the program reads; constants: tensors that follow them; untouched: positions of inputs that the step hands on as they are;
    rebuild: (inputs, outputs) -> the step's result.
    """

    text: str
    taken: list[int]
    constants: list[Tensor]
    untouched: frozenset[int]
    rebuild: Callable[[Sequence[Tensor], Sequence[Tensor]], Any]

    @property
    def digest(self) -> str:
        """Return the name of what the text says."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


def make(f: Callable[..., Any], args: tuple[Any, ...], shared: frozenset[int]) -> Program:
    """Return the program of the vectorised step `f`.

    args: what it may be called with, trees whose leaves are (k, ...); shared: positions of leaves that are the same for all
    clients and that the program takes once, (...). NoProgram where it cannot be one; raises what `f` raises.
    """
    found = [_record(f, args, shared, k) for k in (FEW, MORE)]
    few, more = found
    if len(few.lines) != len(more.lines) or few.result != more.result or len(few.constants) != len(more.constants):
        raise NoProgram("the number of clients decides which kernels it calls")
    for a, b in zip(few.constants, more.constants, strict=True):
        if a.dtype != b.dtype or not torch.equal(a, b):
            raise NoProgram("a constant of it depends on the number of clients")
    lines = [_for_any(a, b) for a, b in zip(few.lines, more.lines, strict=True)]
    leaves = [*few.inputs, *(Leaf(tuple(c.shape), str(c.dtype), False) for c in few.constants)]
    read = {int(n) for line in lines for n in INPUT.findall(line)} | set(range(len(few.inputs), len(leaves)))
    if not any(leaves[n].each for n in read):
        raise NoProgram("it reads nothing of any client")
    at = {n: place for place, n in enumerate(sorted(read))}
    text = {
        "inputs": [list(leaves[n]) for n in at],
        "lines": [INPUT.sub(lambda m: f"i[{at[int(m[1])]}]", line) for line in lines],
        "outputs": few.outputs,
    }
    taken = [n for n in at if n < len(few.inputs)]
    return Program(json.dumps(text), taken, few.constants, few.untouched, few.rebuild)


class _Recorded(NamedTuple):
    inputs: list[Leaf]
    lines: list[str]
    outputs: list[str]
    result: str
    constants: list[Tensor]
    untouched: frozenset[int]
    rebuild: Callable[[Sequence[Tensor], Sequence[Tensor]], Any]


def _record(f: Callable[..., Any], args: tuple[Any, ...], shared: frozenset[int], k: int) -> _Recorded:
    """Record `f` for k times the first client."""
    given: list[Tensor] = []
    replay.flatten(args, given)
    inputs = [
        x[0].contiguous() if n in shared else x[:1].expand(k, *x.shape[1:]).contiguous() for n, x in enumerate(given)
    ]
    tape = replay.Tape(inputs, stand_ins=False)
    with replay.recorder()(tape):
        leaves = [x.expand(k, *x.shape) if n in shared else x for n, x in enumerate(inputs)]
        out = f(*_filled(args, iter(leaves)))
    for n in shared:  # handed on as it is, it is the input
        tape.names[id(leaves[n])] = f"i[{n}]"
    returned: list[str] = []
    result = tape.result(out, returned)
    tape.alive = []
    if tape.reason:
        raise NoProgram(tape.reason)
    steps = tape.needed(returned)
    kernels = {s.function: tape.kernels[s.function] for s in steps}
    for kernel in kernels.values():
        if torch.Tag.nondeterministic_seeded in kernel.tags:
            raise NoProgram(f"{kernel} draws from a global generator")
    outputs = list(dict.fromkeys(n for n in returned if n[0] == "v"))
    read = list(dict.fromkeys(n for s in steps for n in s.reads if n[0] == "c"))
    constants = [tape.scope[n] for n in read]
    names = {n: f"i[{len(inputs) + at}]" for at, n in enumerate(read)}
    names |= {n: f"torch.ops.{kernel}" for n, kernel in kernels.items()}
    names |= {n: _literal(x) for n, x in tape.scope.items() if n[0] == "k" and any(n in s.arguments for s in steps)}

    def spelt(text: str) -> str:
        return re.sub(r"\b[ckf]\d+\b", lambda m: names.get(m[0], m[0]), text)

    lines = [spelt(f"{', '.join(s.outputs)}{',' * s.several} = {s.function}({s.arguments})") for s in steps]
    scope = {n: x for n, x in tape.scope.items() if n in returned}
    taken = f" {', '.join(outputs)}, = o\n" if outputs else ""
    exec(f"def rebuild(i, o):\n{taken} return {result}", scope)
    described = [
        Leaf(tuple(x.shape if n in shared else x.shape[1:]), str(x.dtype), n not in shared)
        for n, x in enumerate(inputs)
    ]
    untouched = frozenset(int(n[2:-1]) for n in returned if n[0] == "i")
    return _Recorded(described, lines, outputs, result, constants, untouched, scope["rebuild"])


def _filled(x: Any, leaves: Any) -> Any:
    """Return the tree with other tensors, in order."""
    if isinstance(x, torch.Tensor):
        return next(leaves)
    if type(x) is dict:
        return {n: _filled(v, leaves) for n, v in x.items()}
    if isinstance(x, tuple):
        made = [_filled(v, leaves) for v in x]
        return type(x)(*made) if hasattr(x, "_fields") else tuple(made)
    return x


def _literal(x: Any) -> str:
    """Return a kernel's argument as Python that needs torch alone."""
    if isinstance(x, float):
        return f"float('{x}')" if x != x or x in (float("inf"), -float("inf")) else repr(x)
    if isinstance(x, str):
        return repr(x)
    if isinstance(x, torch.device):
        return f"torch.{x!r}"
    if isinstance(x, torch.dtype | torch.layout | torch.memory_format):
        return str(x)
    raise NoProgram(f"{type(x).__name__} {x!r} among a kernel's arguments cannot be written down")


def _for_any(few: str, more: str) -> str:
    """Return a line for n clients of what it is for FEW and for MORE. NoProgram if they differ in more than whole numbers."""
    if few == more:
        return few
    if NUMBER.sub("#", few) != NUMBER.sub("#", more):
        raise NoProgram("the number of clients decides which kernels it calls")
    others = iter(NUMBER.findall(more))

    def linear(m: re.Match[str]) -> str:
        a, b = int(m[0]), int(next(others))
        slope, rest = divmod(b - a, MORE - FEW)
        if rest:
            raise NoProgram(f"{a} for {FEW} clients is {b} for {MORE}")
        return m[0] if not slope else f"({slope} * n + {a - FEW * slope})"

    return NUMBER.sub(linear, few)
