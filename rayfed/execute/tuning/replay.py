"""A piece of a visit recorded as the kernels that it calls, and played again without the Python around them.

`vmap`, `grad` and modules end at the same few kernels call after call, and for a small model the Python around them costs
several times what they do. Of the calls with the same shapes the first runs plainly, the second is recorded, the third must
give the recording's exact bits; those after it are played, and now and then one of them is compared with a plain call.

A recording may fail without harm: whatever goes wrong in here switches it off with a note, and the piece runs plainly. `using`
says where notes go; ../README.md says what is tricky.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from rayfed.execute.tuning import process, rewrites
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = 256 * 2**20  # bytes that a recording may keep alive while it is made; larger work hardly notices the transforms
LARGE = 32 * 2**20  # bytes kept alive that are worth giving back to the system afterwards
SMALL = 4096  # elements up to which a stand-in of the same shape is kept
MAX_RECORDINGS = 256  # of one piece; shapes that come later run plainly
FIRST_CHECK = (
    64  # which played call of a recording is the first to be compared with a plain one; then the fourfold of that,
)
CHECK_EVERY = 4096  # ..., and at least one call in so many

_pieces: WeakKeyDictionary[Any, Piece] = WeakKeyDictionary()
_enabled = True
_notes: list[str] = []


@contextmanager
def using(setting: str, notes: list[str]) -> Iterator[None]:
    """Play pieces inside the context unless `setting` is "off"; sentences on what was switched off, and why, go to `notes`."""
    global _enabled, _notes
    before = _enabled, _notes
    _enabled, _notes = setting != "off", notes
    try:
        yield
    finally:
        _enabled, _notes = before


def call(piece: Any, f: Callable[..., Any], *args: Any) -> Any:
    """Return `f(*args)`, played where it can be; args and the result are trees of tensors.

    piece: the function of the visit whose lifetime the recordings share. It decides, with the number and the shapes of args,
    what f calls: it must be pure in tensors. Raises what `f` raises and nothing of the recorder's own.
    """
    if not _enabled:
        return f(*args)
    inputs: list[Tensor] = []
    failure, known, recording = "", None, None
    try:
        known = _pieces.get(piece)
        if known is None:
            known = _pieces[piece] = Piece(piece)
        if not known.off:
            recording = known.find(args, inputs)
    except Exception as error:
        failure = describe(error)
    if known is not None and recording is not None:
        return recording(f, args, inputs, known)
    if failure:
        (known or Piece(piece)).switch_off(f"its calls cannot be distinguished ({failure})")
    return f(*args)


def enabled() -> bool:
    """Return whether pieces may be played here."""
    return _enabled


def name_of(piece: Any) -> str:
    """Return what a piece is called in notes."""
    names = (getattr(piece, n, "") for n in ("__module__", "__qualname__"))
    return ".".join(n for n in names if n) or type(piece).__name__


def is_decided(piece: Any) -> bool:
    """Return whether each recording of this piece that was begun is played by now, or never will be."""
    return piece not in _pieces or all(r.off or r.verified for r in _pieces[piece].recordings.values())


def count_recordings() -> int:
    """Return how many recordings this process has begun and still holds."""
    return sum(len(p.recordings) for p in _pieces.values())


class Piece:
    """The recordings of one piece of a visit, by the structure and the shapes of its arguments."""

    def __init__(self, piece: Any) -> None:
        self.name = name_of(piece)
        self.recordings: dict[Hashable, Recording] = {}
        self.off = False

    def find(self, args: tuple[Any, ...], inputs: list[Tensor]) -> Recording | None:
        """Return the recording for these arguments and add their tensors to `inputs`; None at the first call of such."""
        key = flatten(args, inputs)
        recording = self.recordings.get(key)
        if recording is None and (reason := unusable()):
            self.off = True
            note_down(f"recordings are off in this process, all pieces run plainly: {reason}")
        elif recording is None and len(self.recordings) < MAX_RECORDINGS:
            self.recordings[key] = Recording()
        return recording

    def switch_off(self, reason: str) -> None:
        """Run this piece plainly from here on."""
        self.off = True
        self.recordings.clear()
        note_down(f"{self.name} runs plainly from here on: {reason}")


class Recording:
    """The calls of one piece with the same shapes: recorded, verified, played, and checked now and then."""

    def __init__(self) -> None:
        self.play: Callable[[list[Tensor]], Any] | None = None
        self.aliases: list[tuple[int, int]] = []  # inputs that were one and the same when this was recorded
        self.verified = self.off = False
        self.plays, self.next_check = 0, FIRST_CHECK

    def __call__(self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor], piece: Piece) -> Any:
        """Return `f(*args)`, raising only what `f` raises."""
        if self.off or any(_place(inputs[a]) != _place(inputs[b]) for a, b in self.aliases):
            return f(*args)
        if self.play is None:
            return self._record(f, args, inputs, piece)
        if not self.verified:
            out, same = self._compare(f, args, inputs, piece)
            self.verified, self.off = same is True, same is not True
            return out
        self.plays += 1
        if self.plays >= self.next_check:
            return self._check(f, args, inputs, piece)
        try:
            return self.play(inputs)
        except torch.OutOfMemoryError:  # a plain call needs as much
            raise
        except Exception as error:
            failure = describe(error)
        out = f(*args)  # what raises here too is the client's own failure
        self._fail(piece, f"it could not be played ({failure})")
        return out

    def _record(self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor], piece: Piece) -> Any:
        tape: Tape | None = None
        out, again, failure = None, False, ""
        try:
            tape = Tape(inputs)
            with recorder()(tape):
                out = f(*args)
            self.play, self.aliases, failure = tape.function(out), tape.aliases, tape.failure
            self.off = self.play is None
        except torch.OutOfMemoryError:  # maybe the recording's
            self.off = again = True
        except Exception as error:  # `f` is called again outside of this block: the error keeps alive what was made
            again, failure = True, describe(error)
        finally:
            if tape is not None:
                tape.alive = []  # the tape may outlive this call, its tensors must not
        if again:
            out = f(*args)  # what raises here too is the client's own failure
        if failure:
            self._fail(piece, f"it could not be recorded ({failure})")
        elif tape is not None and tape.size > LARGE and not again:
            process.release_memory()  # playing needs less
        return out

    def _check(self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor], piece: Piece) -> Any:
        """Call `f` plainly, and play this no longer if the recording gives other bits."""
        self.next_check = min(4 * self.next_check, self.next_check + CHECK_EVERY)
        out, same = self._compare(f, args, inputs, piece)
        if same is False:
            piece.switch_off(
                f"after {self.plays} played calls a plain one gave other numbers. What it computes depends on more than its "
                "tensors (a counter, an attribute or a global that Python changes), or its kernels are not deterministic; "
                "until here it was computed as at first"
            )
        return out

    def _compare(
        self, f: Callable[..., Any], args: tuple[Any, ...], inputs: list[Tensor], piece: Piece
    ) -> tuple[Any, bool | None]:
        """Return what a plain call gives, and whether the recording gives the same bits (None where it gave nothing)."""
        assert self.play is not None
        out = f(*args)
        try:
            return out, _same(out, self.play(inputs))
        except torch.OutOfMemoryError:  # two results are more than one
            return out, None
        except Exception as error:
            self._fail(piece, f"it could not be played ({describe(error)})")
            return out, None

    def _fail(self, piece: Piece, reason: str) -> None:
        self.off = True
        note_down(f"a recording of {piece.name} is off: {reason}")


@cache
def unusable() -> str:
    """Return why nothing can be played in this process, "" if it can: a known function is recorded and played once."""

    def gradient(w: Tensor, x: Tensor) -> Tensor:
        return torch.func.grad(lambda w: torch.relu((w * x).sum()) ** 2)(w)  # 2 relu(w x) x

    recording, piece, found = Recording(), Piece(gradient), []
    piece.name = "a known function"
    notes: list[str] = []
    try:
        with using("auto", notes):
            for n in (1.0, 2.0, 3.0):  # recorded, verified, played
                args = torch.tensor([[n, 1.0], [1.0, -n]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
                found = recording(torch.vmap(gradient), args, list(args), piece).tolist()
    except Exception as error:
        return describe(error)
    if notes:
        return notes[0]
    if not recording.plays:
        return "a known function could not be recorded"
    return "" if found == [[10.0, 20.0], [0.0, 0.0]] else f"a known function gave {found}"


def note_down(sentence: str) -> None:
    if sentence not in _notes:
        _notes.append(sentence)


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def flatten(x: Any, into: list[Tensor]) -> Hashable:
    """Return what decides which kernels are called; tensors are added to `into`."""
    if isinstance(x, torch.Tensor):
        into.append(x)
        return x.shape, x.stride(), x.dtype, x.device
    if type(x) is dict:
        return tuple([(n, flatten(v, into)) for n, v in x.items()])
    if isinstance(x, tuple):
        return tuple([flatten(v, into) for v in x])
    return x


def _same(a: Any, b: Any) -> bool:
    """Return whether two trees are equal in structure, shapes and bits."""
    left: list[Tensor] = []
    right: list[Tensor] = []
    if flatten(a, left) != flatten(b, right):
        return False
    return all(_same_bits(x, y) for x, y in zip(left, right, strict=True))


def _same_bits(x: Tensor, y: Tensor) -> bool:
    if torch.equal(x, y):
        return True
    return x.is_floating_point() and torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


class Step(NamedTuple):
    """One kernel's call as Python: `outputs = function(arguments)`; reads: the names in it; several: outputs is a tuple.

    fitting: names of operands whose memory could take the result; `into` then takes it there, of one operand.
    """

    outputs: list[str]
    function: str
    arguments: str
    reads: list[str]
    several: bool
    writes: bool
    fitting: list[str]
    into: str


class Tape:
    """The kernels of one call, in order. All its tensors stay alive, so that none takes another's id or memory.

    Names: `i[n]` an input, `v3` made on the way, `c3` a constant tensor, `f3` a kernel, `k3` another constant.
    """

    def __init__(self, inputs: list[Tensor], stand_ins: bool = True):
        """stand_ins: whether what a kernel reads nothing of but the shape becomes a constant."""
        self.stand_ins = stand_ins
        self.names: dict[int, str] = {}
        self.memory: dict[str, int] = {}  # of each name
        self.views: dict[Hashable, str] = {}  # the name of what is at a place in memory, by shape and strides
        self.alive: list[Tensor] = []
        self.read_only: set[int] = set()  # memory that is not this call's own to write
        self.made: set[int] = set()  # memory made on the way
        self.size = 0
        self.steps: list[Step] = []
        self.scope: dict[str, Any] = {}
        self.kernels: dict[str, Any] = {}
        self.reason = ""  # why this is no recording
        self.failure = ""  # why recording broke down
        self.aliases: list[tuple[int, int]] = []
        for n, x in enumerate(inputs):
            if _place(x) in self.views:
                self.aliases.append((int(self.views[_place(x)][2:-1]), n))
            self._register(x, self.views.get(_place(x), f"i[{n}]"))
            self.read_only.add(_memory(x))

    def note(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Add a kernel's call; raises nothing but OutOfMemoryError."""
        if self.reason:
            return
        try:
            self._add(func, args, kwargs, out)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.failure = self.reason = describe(error)

    def _add(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if not hasattr(func, "_schema") or any(x.is_conj() or x.is_neg() for x in _tensors(out)):
            self.reason = f"{func} is more than a kernel on plain memory"
            return
        if (
            _times_one(func, args, out) and (name := self._expression(args[0], []))[0] != "v"
        ):  # of what nobody writes to
            self.read_only.add(_memory(out))
            return self._register(out, name)
        if (
            self.stand_ins and func in _reading_shapes() and args[0].numel() <= SMALL
        ):  # what was in there need not be computed
            like = args[0]
            args = (torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device), *args[1:])
        reads: list[str] = []
        given = [self._expression(a, reads) for a in args]
        given += [f"{n}={self._expression(a, reads)}" for n, a in kwargs.items()]
        written = _written(func, args, kwargs)
        writes, several = bool(written), isinstance(out, tuple | list)
        if any(_memory(x) in self.read_only for x in written):
            self.reason = f"{func} writes to what is not its own"
        outputs = []
        for x in out if several else (out,):
            if x is not None and not isinstance(x, torch.Tensor):
                self.reason = f"{func} gives {type(x).__name__}"
                return
            if x is not None and id(x) not in self.names:
                if not several and _place(x) in self.views:  # a view of all of it as it is
                    return self._register(x, self.views[_place(x)])
                self._register(x, f"v{len(self.alive)}")
                if _memory(x) not in self.read_only and _memory(x) not in self.made:
                    self.made.add(_memory(x))
                    self.size += x.untyped_storage().nbytes()
            name = "_" if x is None else self.names[id(x)]
            outputs.append(name if name[0] == "v" else "_")
        if self.size > LIMIT:
            self.reason, self.alive = "large", []
        name = f"f{len(self.steps)}"
        self.scope[name] = rewrites.kernel(func, args)
        self.kernels[name] = func
        fitting, into = self._fitting(name, func, args, out)
        self.steps.append(Step(outputs, name, ", ".join(given), reads, several, writes, fitting, into))

    def _fitting(self, name: str, func: Any, args: Any, out: Any) -> tuple[list[str], str]:
        """Return `fitting` and `into` of the call of kernel `name`."""
        writing = rewrites.writing(func)
        if writing is None:
            return [], ""
        kernel, into = writing
        operands = [x for x in (args if into else args[:1]) if isinstance(x, torch.Tensor)]
        fitting = [self.names[id(x)] for x in operands if _memory(x) in self.made and rewrites.fits(x, out)]
        if fitting:
            self.scope[f"{name}o"] = kernel
        return fitting, into

    def _register(self, x: Tensor, name: str) -> None:
        self.names[id(x)] = name
        self.memory[name] = _memory(x)
        self.views.setdefault(_place(x), name)
        self.alive.append(x)

    def _expression(self, x: Any, reads: list[str]) -> str:
        """Return an argument as Python; the names of its tensors are added to `reads`."""
        if isinstance(x, torch.Tensor):
            if id(x) not in self.names:
                if _place(x) in self.views:  # the same under another object
                    self._register(x, self.views[_place(x)])
                else:  # a buffer, frozen weights, a number as a tensor
                    if _memory(x) in self.made or (_memory(x) and _memory(x) in self.read_only):
                        self.reason = "a view came about unseen"
                    self._register(x, f"c{len(self.alive)}")
                    self.scope[self.names[id(x)]] = x
                    self.read_only.add(_memory(x))
            reads.append(self.names[id(x)])
            return reads[-1]
        if isinstance(x, tuple | list):
            return "[" + ", ".join(self._expression(a, reads) for a in x) + "]"
        if x is None or isinstance(x, bool | int):
            return repr(x)
        name = f"k{len(self.scope)}"
        self.scope[name] = x
        return name

    def function(self, out: Any) -> Callable[[list[Tensor]], Any] | None:
        """Return the tape as a function of the inputs, without what nobody reads; None where it cannot be one."""
        returned: list[str] = []
        result = self.result(out, returned)
        if self.reason:
            return None
        lines, later = [f" return {result}"], set(returned)
        steps = self.needed(returned)
        written_over = rewrites.written_over(steps, returned, self.memory)
        for number, step in reversed(list(enumerate(steps))):
            over = sorted({n for n in (*step.reads, *step.outputs) if n[0] == "v"} - later)  # read no more: freed
            later.update(over)
            left = ", ".join(step.outputs) + "," * step.several
            made = f"{step.function}({step.arguments})"
            if operand := written_over.get(number):
                made = f"{step.function}o({step.arguments}" + (f", {step.into}={operand})" if step.into else ")")
            lines.append(f" {left} = {made}" + (f"; del {', '.join(over)}" if over else ""))
        scope = dict(self.scope)
        exec("\n".join(["def play(i):", *reversed(lines)]), scope)  # names and numbers of our own making
        return scope["play"]

    def needed(self, returned: list[str]) -> list[Step]:
        """Return the steps without which the names `returned` would not be what they are, in order."""
        wanted, kept = set(returned), []
        for step in reversed(self.steps):
            if step.writes or not wanted.isdisjoint(step.outputs):
                wanted.update(step.reads)
                kept.append(step)
        return kept[::-1]

    def result(self, x: Any, returned: list[str]) -> str:
        """Return a tree of the tape's tensors as Python; the names in it are added to `returned`."""
        if isinstance(x, dict):
            return "{" + ", ".join(f"{n!r}: {self.result(v, returned)}" for n, v in x.items()) + "}"
        if isinstance(x, tuple):
            return "(" + "".join(f"{self.result(v, returned)}, " for v in x) + ")"
        return self._expression(x, returned)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the arguments that a kernel writes to."""
    if not func._schema.is_mutable:
        return []
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
    return [x for name in names for x in _tensors(given.get(name))]


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, tuple | list):
        return [t for v in x for t in _tensors(v)]
    return [x] if isinstance(x, torch.Tensor) else []


def _times_one(func: Any, args: Any, out: Any) -> bool:
    """Return whether this is x * 1, as vmap makes it of linear layers."""
    return func is torch.ops.aten.mul.Scalar and args[1] == 1 and _like(out) == _like(args[0])


def _like(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype


@cache
def _reading_shapes() -> frozenset[Any]:
    """Return the kernels that read nothing of their first argument but its shape."""
    a = torch.ops.aten
    return frozenset(
        (a.ones_like.default, a.zeros_like.default, a.full_like.default, a.new_zeros.default, a.new_ones.default)
    )


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage().data_ptr())


def _place(x: Tensor) -> Hashable:
    return _memory(x), x.storage_offset(), x.shape, x.stride(), x.dtype


@cache
def recorder() -> Any:
    """Return the dispatch mode, below all transforms, that notes on its tape what passes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self, tape: Tape):
            super().__init__()
            self.tape = tape

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tape.note(func, args, kwargs or {}, out)
        return out

    # Given later: in a class body torch wraps it in what imports its compiler.
    Recorder.__torch_dispatch__ = dispatch  # type: ignore[method-assign]
    return Recorder
