"""Transforms of updates, chained by config between a visit's end and the fold. One file per kind; the folder is the registry.

    transforms: [{kind: clip, norm: 1.0}, {kind: topk, fraction: 0.01}, {kind: quantise, bits: 8}]

A transform is written for one client, and works on one vector: all update parts of its reply (`Part(update=True)`), one after
the other, without what training forward passes write (running statistics, counters).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from rayfed import keys
from rayfed.config.schema import Section
from rayfed.errors import ConfigError, nearest
from rayfed.lazy import torch
from rayfed.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config

PLACES = ("clip", "gaussian", "compress", "code", "mask")  # in a chain, each at most once, in this order
HELPERS = ("chain", "checks")  # modules of this folder that are no kinds


class TransformSettings(Section):
    """Settings of one kind of transform: frozen and strict."""


class Piece(NamedTuple):
    """One tensor of the vector that transforms act on: entry `path` of a part, elements `start` to `stop`."""

    part: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    start: int
    stop: int


class At(NamedTuple):
    """What a transform is given of the client and its ask.

    client, ask: keys of this client's reply, and of the ask, which the server has too, 0-d int64; number: the transform's own, from
    1; state: what the server sent of its state; pieces: of the whole vector.
    """

    client: Tensor
    ask: Tensor
    number: int
    state: Tree
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> Tensor:
        """Return a key of this client, ask and transform."""
        return keys.fold(self.client, self.number)

    @property
    def common(self) -> Tensor:
        """Return a key of this ask and transform, that all clients share and the server has."""
        return keys.fold(self.ask, self.number)


class Collected(NamedTuple):
    """What the server has once an ask's folds are done.

    folded: update part -> its mean or sum; divisors: update part -> what its sum was divided by (1 of a sum); sums: of what the
    transform's `encode` gave beside the vector under the names in `adds`, over the clients; clients: how many a round asks in
    expectation; replies: how many replied; bound: the norm to which updates were clipped, None without a clip; private: whether
    the folded updates get central noise; count_noise: standard deviation of the noise on the clip's count, 0 without one.
    """

    folded: dict[str, Any]
    divisors: dict[str, float]
    sums: Tree
    clients: float
    replies: int
    bound: float | None
    private: bool
    count_noise: float


class Transform:
    """Describe what happens to an update on its way: at the client `encode`, at the server `decode` of each reply and `finish` of
    their fold. All of it is pure in tensors; what is kept is given and returned.

    Class attributes:
        place: one of PLACES.
        lossy: whether the server decodes another vector than the client had.
        adds: names of numbers that `encode` gives beside the vector and that are summed over the clients.
    """

    Settings: ClassVar[type[TransformSettings]] = TransformSettings
    place: ClassVar[str] = "compress"
    lossy: ClassVar[bool] = False
    adds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Any, config: Config | None = None):
        self.settings, self.config = settings, config

    @property
    def kind(self) -> str:
        """Return the kind's name, which is its file's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def feedback(self) -> bool:
        """Return whether what a reply leaves out is added to the client's next one (error feedback)."""
        return bool(getattr(self.settings, "error_feedback", False))

    def server_init(self) -> Tree:
        """Return the transform's state at the server before round 1; by default none."""
        return {}

    def own_init(self, pieces: Sequence[Piece]) -> Tree:
        """Return a client's state before its first visit; pieces: of all update parts. By default what error feedback adds, zeros
        by part."""
        if not self.feedback:
            return {}
        lengths: dict[str, int] = {}
        for p in pieces:
            lengths[p.part] = lengths.get(p.part, 0) + p.stop - p.start
        dtypes = {p.part: p.dtype for p in pieces}
        return {"left": {part: torch.zeros(n, dtype=dtypes[part]) for part, n in lengths.items()}}

    def encode(self, v: Tensor, own: Tree, at: At) -> tuple[Tensor, Tree, Tree]:
        """Return (what is sent of a vector (d,): another vector, what is sent beside it, the client's new state)."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes")

    def decode(self, sent: Tensor, beside: Tree, like: Tensor, at: At) -> Tensor:
        """Return the vector (d,) that the server takes from what was sent; like: a tensor of its shape and type."""
        return sent

    def size(self, n: int, bits: int, pieces: Sequence[Piece]) -> tuple[int, int, int]:
        """Return of a vector of n numbers of so many bits (numbers sent, bits of each, bits beside them)."""
        return n, bits, 0

    def finish(self, got: Collected, state: Tree, key: int) -> tuple[dict[str, Any], Tree]:
        """Return (the folded update parts, the new state at the server); by default both as they are."""
        return got.folded, state

    def logs(self, state: Tree) -> dict[str, float]:
        """Return what the round's row says, from the state that its clients were sent."""
        return {}


def names() -> list[str]:
    """Return the known kinds."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def get(kind: str) -> type[Transform]:
    """Return the class of a kind. ConfigError naming the nearest known one."""
    if kind not in names():
        raise ConfigError(f"{kind!r} found{nearest(kind, names())}, allowed: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    (cls,) = [
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Transform) and c.__module__ == module.__name__
    ]
    return cls


def of(config: Config) -> list[Transform]:
    """Return the transforms of a config whose settings are valid."""
    return [(cls := get(t.kind))(cls.Settings(**t.options), config) for t in config.transforms]


def own_weights(config: Config, weights: str) -> list[str]:
    """Return why updates cannot be folded with weights that a method's server chooses: central noise and masks are for sums in which all
    count alike. weights: what they are, in words."""
    return [
        f"transforms.{i}.kind: {t.kind} found, under which the server sees sums in which all updates count alike, and "
        f"{config.method.name} has {weights}; allowed: without it"
        for i, t in enumerate(config.transforms)
        if t.kind == "mask" or (t.kind == "gaussian" and t.options.get("where", "central") == "central")
    ]
