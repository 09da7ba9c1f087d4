"""Cuts (`task.split`): a network whose parts lie with a client and a server, as in split learning.

    task: {split: {after: [blocks.0, blocks.2], transforms: [{kind: quantise, bits: 8}]}}

Behind the layers `after` the network is cut. One cut: the client has what is before it, the server what is behind it, and labels go
along. Two: the last part is the client's again (U-shaped), and labels stay. What crosses in a training step acts as it would in a
deployment: `transforms` change the activations on their way and the gradients on theirs, and both are counted in bytes. Everything is
computed in one place: the server's part is a copy for each client that is averaged with the rest (SplitFed-v1), so that where no
transform acts the result is the unsplit network's to the bit. One server part that is stepped on all clients' joined batch
(SplitFed-v2), and waiting for one another within a step, are not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rayfed import keys
from rayfed.config.parts import Registry
from rayfed.config.schema import Section
from rayfed.errors import ConfigError, nearest
from rayfed.lazy import torch
from rayfed.visits import ClientContext, Visit

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.task import Task
    from rayfed.tree import Tree

CROSSED = "rows that crossed a cut"  # the part that tells the engine, (cuts, 2) int64: forwards and backwards
PURPOSE = 0x637574  # apart from what else is drawn from a step's key


class TransformSettings(Section):
    """Settings of one kind of transform at a cut: frozen and strict."""


class Message(NamedTuple):
    """The size of one row's message: `vectors` of `width` numbers of `bits` each, and bits beside them."""

    vectors: int
    width: int
    bits: int
    beside: int = 0

    @property
    def bytes(self) -> int:
        """Return its bytes, rounded up."""
        return math.ceil((self.vectors * self.width * self.bits + self.beside) / 8)


@dataclass(frozen=True)
class At:
    """Where and when something crosses.

    key: of the client, the step, the cut and the transform, 0-d int64; client: its number, 0-d int64; w: (B,) 1 or 0 on padding;
    sends: whether activations go from the client to the server here, and gradients back.
    """

    key: Tensor
    client: Tensor
    w: Tensor
    sends: bool


class CutTransform:
    """Base of what acts on what crosses a cut: activations h (B, ..., d) of one client's batch, and their gradients."""

    Settings: ClassVar[type[TransformSettings]] = TransformSettings

    def __init__(self, settings: Any, seed: int):
        self.settings, self.seed = settings, seed

    def __call__(self, h: Tensor, at: At) -> Tensor:
        """Return what arrives; its derivative is what becomes of the gradient on the way back (see `crossing`)."""
        raise TypeError(f"{type(self).__name__} does not say what arrives")

    def size(self, message: Message) -> Message:
        """Return the size of a row's message after it; by default the same."""
        return message


REGISTRY: Registry[CutTransform] = Registry(__name__, __path__, CutTransform)


def crossing(h: Tensor, there: Callable[..., Tensor], back: Callable[..., Tensor], key: Tensor | None = None) -> Tensor:
    """Return there(h), whose gradient g becomes back(g) and not there's derivative; with a `key`, there(h, key) and back(g, key)."""
    return _function().apply(
        h, torch.zeros((), dtype=torch.int64) if key is None else key, there, back, key is not None
    )


@cache
def _function() -> Any:
    class Crossing(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(h: Any, key: Any, there: Any, back: Any, keyed: bool) -> Any:
            return there(h, key) if keyed else there(h)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _, key, _, ctx.back, ctx.keyed = inputs
            ctx.save_for_backward(key)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            (key,) = ctx.saved_tensors
            return (ctx.back(g, key) if ctx.keyed else ctx.back(g)), None, None, None, None

    return Crossing


class Crossings:
    """What crosses within one client's step: notes of (number of the cut, 0 forwards or 1 backwards, its rows, 0-d)."""

    def __init__(self, client: Tensor):
        self.client, self.notes = client, []  # type: Tensor, list[tuple[int, int, Tensor]]

    def pass_through(self, rows: Tensor, cuts: int) -> None:
        """Note that rows, 0-d int64, cross all cuts forwards and backwards, where that is not seen by itself."""
        self.notes += [(i, way, rows) for i in range(cuts) for way in (0, 1)]

    def rows(self, cuts: int) -> Tensor:
        """Return how many rows crossed each cut forwards and backwards, (cuts, 2) int64."""
        zero = torch.zeros((), dtype=torch.int64, device=self.client.device)
        found = [[zero, zero] for _ in range(cuts)]
        for cut, way, n in self.notes:
            found[cut][way] = found[cut][way] + n
        return torch.stack([torch.stack(row) for row in found])


class Cut:
    """The cuts of a task's network. names: of the layers behind which it is cut, from shallow to deep."""

    def __init__(self, task: Task):
        config = task.config
        assert config.task.split is not None
        known = {n: m for n, m in task._module.named_modules() if n}
        self.task = task
        self.names = tuple(self._resolved(n, known) for n in config.task.split.after)
        self.transforms = [REGISTRY.get(k.kind)(_settings(k), config.seed) for k in config.task.split.transforms]
        for i, name in enumerate(self.names):
            known[name].register_forward_hook(self._hook(i))

    def _resolved(self, name: str, known: Any) -> str:
        """Return the layer's full name: `name` itself, or the only one that ends in it."""
        found = [name] if name in known else [n for n in known if n.endswith(f".{name}")]
        if len(found) == 1:
            return found[0]
        where = (
            f"task.split.after: {name!r} found{nearest(name, known)}, task.model {self.task.config.task.model.name} has"
        )
        if found:
            raise ConfigError(f"{where} several such layers: {', '.join(found)}")
        raise ConfigError(f"{where} no such layer; there are: {', '.join(known)}")

    def _hook(self, i: int) -> Any:
        """Return a hook that lets what layer i answers cross, within a training step of a client at work."""

        def hook(module: Any, args: Any, out: Any) -> Any:
            step, crossings = self.task._during["step"], self.task._during["crossing"]
            return None if step is None or crossings is None else self._cross(out, i, step, crossings)

        return hook

    def _cross(self, h: Tensor, i: int, step: Any, crossings: Crossings) -> Tensor:
        w = torch.ones(len(h), dtype=h.dtype, device=h.device) if step.w is None else step.w
        rows = (w > 0).sum()

        def noting(way: int) -> Callable[[Tensor], Tensor]:
            def note(x: Tensor) -> Tensor:
                crossings.notes.append((i, way, rows))
                return x.clone()

            return note

        h = crossing(h, noting(0), noting(1))
        for number, transform in enumerate(self.transforms):
            key = _key(step.key, i, number)
            h = transform(h, At(key, crossings.client, w, sends=i % 2 == 0))
        return h

    @cached_property
    def messages(self) -> tuple[Message, ...]:
        """Return the size of one row's message at each cut, activations and gradients alike."""
        with torch.no_grad():
            seen = self.task.watch(self.task.initial, self.task.blank(1), self.names)
        found = []
        for name in self.names:
            h = seen[name][0]
            message = Message(math.prod(h.shape[:-1]), h.shape[-1], 8 * h.element_size())
            for transform in self.transforms:
                message = transform.size(message)
            found.append(message)
        return tuple(found)

    @cached_property
    def behind(self) -> frozenset[str]:
        """Return the names of all parameters, frozen ones too, of layers that are called after the last cut."""
        called: list[str] = []
        modules = dict(self.task._module.named_modules())
        hooks = [m.register_forward_hook(lambda m, args, out, n=n: called.append(n)) for n, m in modules.items()]
        try:
            with torch.no_grad():
                self.task.apply(self.task.initial, self.task.blank(1))
        finally:
            for hook in hooks:
                hook.remove()
        later = called[called.index(self.names[-1]) + 1 :]
        before = {n for n in called[: called.index(self.names[-1]) + 1]}
        owners = {n for n in later if n not in before}
        return frozenset(f"{o}.{n}" for o in owners for n, _ in modules[o].named_parameters(recurse=False) if o)

    def traffic(self, rows: Any) -> tuple[int, int]:
        """Return (bytes up, bytes down) of the rows (cuts, 2) that crossed each cut forwards and backwards."""
        up = down = 0
        for i, ((there, back), message) in enumerate(zip(rows.tolist(), self.messages, strict=True)):
            first, second = (there, back) if i % 2 == 0 else (back, there)
            up, down = up + first * message.bytes, down + second * message.bytes
        return up, down


def _settings(chosen: Any) -> Any:
    return REGISTRY.get(chosen.kind).Settings.model_validate(chosen.options)


def _key(key: Tensor, *numbers: int) -> Tensor:
    for n in (PURPOSE, *numbers):
        key = keys.fold(key, n)
    return key


def metered(inner: Visit, task: Task) -> Visit:
    """Return a visit whose training steps cross the cuts, and that sends the number of rows that did under `CROSSED`."""
    cut = task.cut
    assert cut is not None
    count = len(cut.names)

    def begin(client: ClientContext) -> Tree:
        at = client.info.client
        crossed = torch.zeros(count, 2, dtype=torch.int64, device=at.device)
        return {"inner": inner.begin(client), "crossed": crossed, "client": at}

    def entering(enter: Any) -> Any:
        return lambda client, carry: {**carry, "inner": enter(client, carry["inner"])}

    def stepping(step: Any) -> Any:
        def crossing_step(carry: Tree, batch: Any, key: Any) -> Tree:
            crossings = Crossings(carry["client"])
            with task.crossing(crossings):
                after = step(carry["inner"], batch, key)
            return {**carry, "inner": after, "crossed": carry["crossed"] + crossings.rows(count)}

        return crossing_step

    def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
        parts, after = inner.end(client, carry["inner"])
        return {**parts, CROSSED: carry["crossed"]}, after

    phases = [p._replace(step=stepping(p.step), enter=entering(p.enter) if p.enter else None) for p in inner.phases]
    local = inner.local
    return Visit(begin, phases, end, inner.vectorize, (lambda carry: local(carry["inner"])) if local else None)


def problems(config: Config) -> list[str]:
    """Return what is wrong with `task.split`, known before there is a network."""
    split = config.task.split
    if split is None:
        return []
    found = []
    for i, one in enumerate(split.transforms):
        found += REGISTRY.problems(one, f"task.split.transforms.{i}")
    if config.local.privacy is not None:
        found.append("local.privacy: found beside task.split, which counts whole batches; allowed: null")
    return found


def misplaced(task: Task) -> list[str]:
    """Return why a network cannot be cut where `task.split.after` says: it is tried."""
    cut, model = task.cut, task.config.task.model.name
    if cut is None:
        return []
    if task.buffers:
        return [
            f"task.split: found, but task.model: {model} writes buffers in training; allowed: local.buffers: frozen"
        ]
    x = task.blank(2)
    with torch.no_grad():
        called: list[str] = []
        hooks = [task.layer(n).register_forward_hook(lambda m, args, out, n=n: called.append(n)) for n in cut.names]
        try:
            seen = task.watch(task.initial, x, [*cut.names, ""])
        finally:
            for hook in hooks:
                hook.remove()
        for name in cut.names:
            if not isinstance(seen.get(name), torch.Tensor) or not task._follows(name, seen[name], seen[""]):
                allowed = ", ".join(task.cuts) or "none"
                return [
                    f"task.split.after: {name!r} found, from whose answer alone the rest of task.model {model} does not follow; it can be "
                    f"cut behind: {allowed}"
                ]
    if called != list(cut.names):
        return [
            f"task.split.after: {', '.join(cut.names)} found, the network calls them in the order {', '.join(called)}, each must come once"
        ]
    return []
