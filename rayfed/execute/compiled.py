"""The compiling executor: `vmap` whose training steps are machine code made for them.

A step is recorded once as a program for any number of clients (`tuning/program.py`), compiled in a process of its own and kept on
disk (`tuning/compiler.py`). It is used from its first call on, so that a run and its resumption compute alike, and compared with a
plain call for every number of clients at its first, and now and then. What cannot be compiled runs as under `vmap`, with a note.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from rayfed import tree
from rayfed.execute import vmap
from rayfed.execute.tuning import compiler, program, replay
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.execute.batches import Cohort
    from rayfed.tree import Tree
    from rayfed.visits import Phase, Visit

# How far a compiled step may be from a plain one: a share of the step's update, and the rounding of its numbers.
SHARES = {"torch.float64": 1e-9, "torch.float32": 1e-4}
ROUNDING = 16

_folder: Callable[[], Path] | None = None
_steps: WeakKeyDictionary[Any, dict[Hashable, Step]] = WeakKeyDictionary()


@contextmanager
def using(folder: Callable[[], Path]) -> Iterator[None]:
    """Keep packages in the folder that `folder()` names inside the context."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def execute(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield as `vmap` does."""
    return vmap.execute(visit, cohort, shared, mine, own, data, _call)


def _call(phase: Phase, f: Callable[..., Any], *args: Any) -> Any:
    """Return `f(*args)`: a step of a training phase compiled, everything else as under `vmap`."""
    if phase.over.kind in ("once", "whole") or not replay.enabled():  # steps as wide as the largest client is large
        return replay.call(phase.step, f, *args)
    inputs: list[Tensor] = []
    kind: list[Any] = []
    _describe(args, inputs, kind)
    key = tuple(kind)
    known = _steps.get(phase.step)
    if known is None:
        known = _steps[phase.step] = {}
    step = known.get(key)
    if step is None:
        step = known[key] = Step(phase.step)
    return step(phase.step, f, args, inputs)


def _describe(x: Any, leaves: list[Tensor], kind: list[Any]) -> None:
    """Add a tree's tensors to `leaves`, and what a program for any number of clients depends on to `kind`."""
    if isinstance(x, torch.Tensor):
        leaves.append(x)
        kind += (x.shape[1:], x.dtype, x.device, x.dim() > 1 and x.stride(0) == 0)
    elif type(x) is dict:
        for name, v in x.items():
            kind.append(name)
            _describe(v, leaves, kind)
        kind.append(None)
    elif isinstance(x, tuple):
        for v in x:
            _describe(v, leaves, kind)
        kind.append(None)
    else:
        kind.append(x)


def _is_shared(x: Tensor) -> bool:
    return x.dim() > 1 and x.stride(0) == 0


class Step:
    """A step whose arguments have one structure, compiled."""

    def __init__(self, piece: Any):
        self.name = replay.name_of(piece)  # the piece itself is the key under which this is kept, as long as it lives
        self.off = self.begun = False
        self.seen: set[int] = set()
        self.plays, self.next_check = 0, replay.FIRST_CHECK

    def __call__(self, piece: Any, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor]) -> Any:
        """Return `f(*args)`, raising only what `f` raises. piece: the step that `f` comes from."""
        if not self.begun:
            self._begin(f, args, inputs)
        if self.off:
            return replay.call(piece, f, *args)
        failure = ""
        try:
            out = self._run(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failure = replay.describe(error)
        if failure:
            self._switch_off(f"its code could not be run ({failure})")
            return f(*args)
        k = inputs[0].shape[0]
        self.plays += 1
        if k in self.seen and self.plays < self.next_check:
            return out
        if k in self.seen:
            self.next_check = min(4 * self.next_check, self.next_check + replay.CHECK_EVERY)
        self.seen.add(k)
        plain = f(*args)
        if reason := _difference(args[0], out, plain):
            self._switch_off(f"call {self.plays} of it, for {k} clients, gave other numbers than a plain one: {reason}")
            return plain
        return out

    def _begin(self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor]) -> None:
        """Make the program and load its code."""
        self.begun = True
        try:
            if reason := replay.unusable():
                raise program.NoProgram(reason)
            if _folder is None or any(x.device.type != "cpu" or not x.dim() for x in inputs):
                raise program.NoProgram("code is compiled for CPUs alone")
            made = program.make(f, args, frozenset())
            self.shared = frozenset(n for n in made.untouched if _is_shared(inputs[n]))
            if self.shared:
                made = program.make(f, args, self.shared)
            self.rebuild, self.constants = made.rebuild, made.constants
            self.taken = [(n, n in self.shared) for n in made.taken]
            self.package = compiler.load(made.text, made.digest, _folder())
        except (program.NoProgram, compiler.CannotCompile) as error:
            self._switch_off(str(error))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._switch_off(replay.describe(error))

    def _run(self, inputs: list[Tensor]) -> Any:
        k, full = inputs[0].shape[0], inputs
        if k == 1:
            full = [x.expand(2, *x.shape[1:]) for x in inputs]
        given = [full[n][0] if shared else full[n].contiguous() for n, shared in self.taken]
        out = self.package.run(given + self.constants)
        return self.rebuild(inputs, out if k > 1 else [x[:1] for x in out])

    def _switch_off(self, reason: str) -> None:
        self.off, self.package = True, None
        replay.note_down(f"{self.name} is not compiled and runs as under vmap: {reason}")


def _leaves(t: Tree) -> tuple[list[Tensor], list[tuple[Any, ...]]]:
    found = list(tree.leaves(t))
    return [x for _, x in found], [(path, x.shape, x.dtype) for path, x in found]


def _difference(before: Tree, out: Tree, plain: Tree) -> str:
    """Return how a compiled step's carry differs from a plain one's by more than rounding, "" if it does not."""
    (olds, old), (news, new), (rights, right) = (_leaves(t) for t in (before, out, plain))
    if new != right:
        return "they differ in structure"
    same = old == new
    sums: dict[Any, list[float]] = {}
    for n, (x, y) in enumerate(zip(news, rights, strict=True)):
        if not x.is_floating_point():
            if not torch.equal(x, y):
                return "whole numbers differ"
            continue
        error, update, size = sums.setdefault(x.dtype, [0.0, 0.0, 0.0])
        moved = y - olds[n] if same else y
        found = (float(torch.linalg.vector_norm(z.double())) ** 2 for z in (x - y, moved, y))
        sums[x.dtype] = [a + b for a, b in zip((error, update, size), found, strict=True)]
    for dtype, squares in sums.items():
        error, update, size = (math.sqrt(s) if math.isfinite(s) else math.inf for s in squares)
        bound = SHARES.get(str(dtype), 1e-2) * update + ROUNDING * torch.finfo(dtype).eps * size
        if math.isfinite(bound) and not error <= bound:
            return f"{error:.3g} apart in {str(dtype).removeprefix('torch.')}, where {bound:.3g} is allowed"
    return ""
