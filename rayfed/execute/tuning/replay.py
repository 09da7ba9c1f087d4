"""A piece of a visit recorded as the kernels it calls, and played again without what stood around them.

`vmap`, `grad` and modules end at the same few kernels call after call, and for a small model what stands around them costs
several times what they do. Of the calls with the same shapes the first runs plainly, the second is recorded, the third must
give the recording's very bits; those after it are played.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rayfed.execute.tuning import process
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 256 * 2**20  # bytes that a recording may keep alive while it is made; larger work hardly notices the transforms
LARGE = 32 * 2**20  # bytes kept alive that are worth giving back to the system afterwards
SMALL = 4096  # elements up to which a stand-in of the same shape is kept
MAX_RECORDINGS = 256  # recordings of one piece; shapes that come later run plainly

_made: WeakKeyDictionary[Any, dict[Hashable, Recording]] = WeakKeyDictionary()


def call(piece: Any, f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)`, played where it can be; args and what f gives are trees of tensors.

    piece: the function of the visit whose lifetime the recordings share. It decides, with the number and the shapes of args,
    what f calls: it must be pure in tensors.
    """
    known = _made.setdefault(piece, {})
    inputs: list[Tensor] = []
    key = _flat(args, inputs)
    recording = known.get(key)
    if recording is not None:
        return recording(f, args, inputs)
    if len(known) < MAX_RECORDINGS:  # shapes that come once are not worth more
        known[key] = Recording()
    return f(*args)


def is_decided(piece: Any) -> bool:
    """Return whether each recording of this piece that was begun is played by now, or never will be."""
    return all(r.off or r.sure for r in _made.get(piece, {}).values())


class Recording:
    """The calls of one function with the same shapes: recorded, compared, played."""

    def __init__(self) -> None:
        self.play: Callable[[list[Tensor]], Any] | None = None
        self.twins: list[tuple[int, int]] = []  # inputs that were one and the same when this was recorded
        self.sure = self.off = False

    def __call__(self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor]) -> Any:
        if self.off or any(_place(inputs[a]) != _place(inputs[b]) for a, b in self.twins):
            return f(*args)
        if self.sure and self.play is not None:
            return self.play(inputs)
        if self.play is not None:
            out = f(*args)
            self.sure = _same(out, self.play(inputs))
            self.off = not self.sure
            return out
        tape, short = _Tape(inputs), False
        try:
            with _mode()(tape):
                out = f(*args)
            self.play, self.twins = tape.function(out), tape.twins
        except torch.OutOfMemoryError:
            short = True  # maybe the recording's: again below, where the error and what it holds are gone
        finally:
            tape.alive = []  # the tape may outlive this call, its tensors must not
        self.off = self.play is None
        if short:
            return f(*args)
        if tape.size > LARGE:
            process.release_memory()  # playing needs less
        return out


def _flat(x: Any, into: list[Tensor]) -> Hashable:
    """What decides which kernels are called; the tensors go to `into`."""
    if isinstance(x, torch.Tensor):
        into.append(x)
        return x.shape, x.stride(), x.dtype, x.device
    if type(x) is dict:
        return tuple([(n, _flat(v, into)) for n, v in x.items()])
    if isinstance(x, tuple):
        return tuple([_flat(v, into) for v in x])
    return x


def _same(a: Any, b: Any) -> bool:
    """Equal in structure, shapes and bits."""
    left: list[Tensor] = []
    right: list[Tensor] = []
    return _flat(a, left) == _flat(b, right) and all(
        torch.equal(x, y)
        or (x.is_floating_point() and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num()))
        for x, y in zip(left, right, strict=True)
    )


class _Step(NamedTuple):
    """One kernel's call as Python: `makes = says`."""

    makes: list[str]
    says: str
    reads: list[str]
    several: bool
    writes: bool


class _Tape:
    """The kernels of one call, in order. All its tensors stay alive, so that none takes another's id or memory."""

    def __init__(self, inputs: list[Tensor]):
        self.names: dict[int, str] = {}
        self.views: dict[Hashable, str] = {}  # what lies at a place in memory, by shape and strides
        self.alive: list[Tensor] = []
        self.fixed: set[int] = set()  # memory that is not this call's own to write
        self.own: set[int] = set()  # memory made on the way
        self.size = 0
        self.steps: list[_Step] = []
        self.scope: dict[str, Any] = {}
        self.why = ""  # why this is no recording
        self.twins: list[tuple[int, int]] = []
        for n, x in enumerate(inputs):
            if _place(x) in self.views:
                self.twins.append((int(self.views[_place(x)][2:-1]), n))
            self._know(x, self.views.get(_place(x), f"i[{n}]"))
            self.fixed.add(_memory(x))

    def note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if self.why:
            return
        if not hasattr(func, "_schema") or any(x.is_conj() or x.is_neg() for x in _tensors(out)):
            self.why = f"{func} is more than a kernel on plain memory"
            return
        if _times_one(func, args, out) and (name := self._say(args[0], []))[0] != "v":  # of what nobody writes to
            self.fixed.add(_memory(out))
            return self._know(out, name)
        if func in _of_shapes() and args[0].numel() <= SMALL:  # what was in there need not be worked out
            args = (
                torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype, device=args[0].device),
                *args[1:],
            )
        reads: list[str] = []
        given = [self._say(a, reads) for a in args] + [f"{n}={self._say(a, reads)}" for n, a in kwargs.items()]
        written = _written(func, args, kwargs)
        writes, several = bool(written), isinstance(out, tuple | list)
        if any(_memory(x) in self.fixed for x in written):
            self.why = f"{func} writes to what is not its own"
        makes = []
        for x in out if several else (out,):
            if x is not None and not isinstance(x, torch.Tensor):
                self.why = f"{func} gives {type(x).__name__}"
                return
            if x is not None and id(x) not in self.names:
                if not several and _place(x) in self.views:  # a view of all of it as it is
                    return self._know(x, self.views[_place(x)])
                self._know(x, f"v{len(self.alive)}")
                if _memory(x) not in self.fixed and _memory(x) not in self.own:
                    self.own.add(_memory(x))
                    self.size += x.untyped_storage().nbytes()
            name = "_" if x is None else self.names[id(x)]
            makes.append(name if name[0] == "v" else "_")
        if self.size > LIMIT:
            self.why, self.alive = "large", []
        name = f"f{len(self.steps)}"
        self.scope[name] = func._op
        self.steps.append(_Step(makes, f"{name}({', '.join(given)})", reads, several, writes))

    def _know(self, x: Tensor, name: str) -> None:
        self.names[id(x)] = name
        self.views.setdefault(_place(x), name)
        self.alive.append(x)

    def _say(self, x: Any, reads: list[str]) -> str:
        if isinstance(x, torch.Tensor):
            if id(x) not in self.names:
                if _place(x) in self.views:  # the same under another object
                    self._know(x, self.views[_place(x)])
                else:  # a buffer, frozen weights, a number as a tensor
                    if _memory(x) in self.own or (_memory(x) and _memory(x) in self.fixed):
                        self.why = "a view came about unseen"
                    self._know(x, f"c{len(self.alive)}")
                    self.scope[self.names[id(x)]] = x
                    self.fixed.add(_memory(x))
            reads.append(self.names[id(x)])
            return reads[-1]
        if isinstance(x, tuple | list):
            return "[" + ", ".join(self._say(a, reads) for a in x) + "]"
        if x is None or isinstance(x, bool | int):
            return repr(x)
        name = f"k{len(self.scope)}"
        self.scope[name] = x
        return name

    def function(self, out: Any) -> Callable[[list[Tensor]], Any] | None:
        """The tape as Python, without what nobody reads; what is read no more is freed. None where it cannot be one."""
        returned: list[str] = []
        result = self._result(out, returned)
        if self.why:
            return None
        wanted, kept = set(returned), []
        for step in reversed(self.steps):
            if step.writes or not wanted.isdisjoint(step.makes):
                wanted.update(step.reads)
                kept.append(step)
        lines, later = [f" return {result}"], set(returned)
        for step in kept:
            over = sorted({n for n in (*step.reads, *step.makes) if n[0] == "v"} - later)
            later.update(over)
            left = ", ".join(step.makes) + "," * step.several
            lines.append(f" {left} = {step.says}" + (f"; del {', '.join(over)}" if over else ""))
        scope = dict(self.scope)
        exec("\n".join(["def play(i):", *reversed(lines)]), scope)  # names and numbers of our own making
        return scope["play"]

    def _result(self, x: Any, returned: list[str]) -> str:
        if isinstance(x, dict):
            return "{" + ", ".join(f"{n!r}: {self._result(v, returned)}" for n, v in x.items()) + "}"
        if isinstance(x, tuple):
            return "(" + "".join(f"{self._result(v, returned)}, " for v in x) + ")"
        return self._say(x, returned)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that a kernel writes to."""
    if not func._schema.is_mutable:
        return []
    said = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
    return [x for name in said for x in _tensors(given.get(name))]


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, tuple | list):
        return [t for v in x for t in _tensors(v)]
    return [x] if isinstance(x, torch.Tensor) else []


def _times_one(func: Any, args: Any, out: Any) -> bool:
    """x * 1, as vmap makes it of linear layers."""
    return func is torch.ops.aten.mul.Scalar and args[1] == 1 and _like(out) == _like(args[0])


def _like(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype


@cache
def _of_shapes() -> frozenset[Any]:
    """Kernels that look at their first argument's shape only."""
    a = torch.ops.aten
    return frozenset(
        (a.ones_like.default, a.zeros_like.default, a.full_like.default, a.new_zeros.default, a.new_ones.default)
    )


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage().data_ptr())


def _place(x: Tensor) -> Hashable:
    return _memory(x), x.storage_offset(), x.shape, x.stride(), x.dtype


@cache
def _mode() -> Any:
    """The dispatch mode below all transforms that tells its tape what passes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Notes(TorchDispatchMode):
        def __init__(self, tape: _Tape):
            super().__init__()
            self.tape = tape

    def told(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tape.note(func, args, kwargs or {}, out)
        return out

    # Given later: in a class body torch wraps it in what imports its compiler.
    Notes.__torch_dispatch__ = told  # type: ignore[method-assign]
    return Notes
