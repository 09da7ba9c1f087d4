"""Rules of aggregation by config (`aggregate`): what takes the place of the mean of clients' updates, under any method that folds one.

One file per kind; the folder is the registry. `rayfed.engine.ruling` applies them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from rayfed.config.parts import Registry
from rayfed.config.schema import Section
from rayfed.wire import ANY

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.method import Method

MEAN = "mean"  # the kind that asks for nothing


class AggregatorSettings(Section):
    """Settings of one rule: frozen and strict."""


class Evidence(NamedTuple):
    """What a rule may decide by, of n replies in the order of client ids.

    gram: (n, n) inner products of their updates, without what training only writes (running statistics), float64; of the entries
    of one tensor where the rule is `by_tensor`. weights: (n,) those of the method's mean, which sum to 1; ids: their clients, (n,);
    round: from 1.
    """

    gram: np.ndarray
    weights: np.ndarray
    ids: np.ndarray
    round: int


class Aggregator:
    """Base of a rule. What it needs decides where it works, and what moves:

    ("fold",)         `scale`: a factor for each update by its own norm, where the client ran; the mean follows. Nothing moves.
    ("gram",)         `weigh`: a coefficient for each update, from inner products. Updates stay where they are, in memory.
    ("rows",)         `combine`: the updates' coordinates, block by block.
    ("gram", "rows")  `weigh`, then `combine` of the updates whose coefficient is not 0.

    Class attributes:
        Settings: its settings.
        needs: as above.
        by_tensor: whether `weigh` is asked for each tensor of the model by itself.
        weighted: whether it reads the weights of the method's mean, so that clients tell n_i.
        sums_to_one: whether coefficients sum to 1; where not, running statistics have the plain mean of the updates with a coefficient.
        memory: whether inner products are those of the sums of each client's updates over all rounds, which the engine then keeps.
    """

    Settings: ClassVar[type[AggregatorSettings]] = AggregatorSettings
    needs: ClassVar[tuple[str, ...]] = ("gram",)
    by_tensor: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    sums_to_one: ClassVar[bool] = True
    memory: ClassVar[bool] = False

    def __init__(self, settings: Any):
        self.settings = settings

    @property
    def least(self) -> int:
        """The fewest replies that it can judge; with fewer there is no update."""
        return 1

    def check(self, clients: int) -> list[str]:
        """Return what is wrong with its settings for rounds of `clients`; by default that these are too few."""
        if clients >= self.least:
            return []
        return [f"federation.per_round: {clients} found, {kind_of(self)} needs at least {self.least} clients a round"]

    def scale(self, norms: Tensor) -> Tensor:
        """Return a factor for each update of norm (k,); (k,)."""
        raise TypeError(f"{type(self).__name__} does not say how it scales an update")

    def weigh(self, seen: Evidence) -> np.ndarray:
        """Return the coefficient of each update, (n,): the result is their sum."""
        raise TypeError(f"{type(self).__name__} does not say how it weighs updates")

    def combine(self, rows: Tensor) -> Tensor:
        """Return what becomes of some coordinates, (b,), of the updates' own, (n, b)."""
        raise TypeError(f"{type(self).__name__} does not say how it combines coordinates")


class TolerantSettings(AggregatorSettings):
    """Settings of the rules that are made for a number of attackers."""

    f: int = Field(ge=0, description="Attackers that it withstands among the replies of a round.")


class Tolerant(Aggregator):
    """Base of rules that withstand `f` attackers where enough others reply; condition: how many that takes, in words."""

    Settings = TolerantSettings
    condition: ClassVar[str] = "n >= 2 f + 1"

    def fewest(self, f: int) -> int:
        """Return the fewest replies with which it withstands f attackers."""
        return 2 * f + 1

    @property
    def least(self) -> int:
        return max(1, self.fewest(self.settings.f))

    def check(self, clients: int) -> list[str]:
        f = self.settings.f
        if clients >= self.fewest(f):
            return []
        most = max((g for g in range(f) if clients >= self.fewest(g)), default=None)
        allowed = f"at most {most}" if most is not None else f"none; ask at least {self.fewest(0)} clients a round"
        return [
            f"aggregate.f: {f} found, {kind_of(self)} needs {self.condition} and {clients} clients are asked in a round; "
            f"allowed: {allowed}"
        ]


KINDS = Registry(__name__, __path__, Aggregator, MEAN)


def kind_of(rule: Aggregator) -> str:
    """Return the name of a rule in the config."""
    return type(rule).__module__.rpartition(".")[2]


def of(config: Config) -> Aggregator | None:
    """Return the rule of a config whose settings are valid; None for the mean."""
    return None if config.aggregate.kind == MEAN else KINDS.make(config.aggregate)


def ruled(method: Method | type[Method]) -> tuple[str, ...]:
    """Return the parts of a method that a rule acts on: its updates, where there are several those marked `robust`."""
    updates = {n: p for n, p in method.wire.up.items() if p.update}
    return tuple(updates) if len(updates) == 1 else tuple(n for n, p in updates.items() if p.robust)


def problems(config: Config, method: type[Method] | None) -> list[str]:
    """Return what is wrong with `aggregate`, by itself and for a method, where that is known."""
    if wrong := KINDS.problems(config.aggregate, "aggregate"):
        return wrong
    rule, kind = of(config), config.aggregate.kind
    if rule is None:
        return []
    wrong = rule.check(config.per_round())
    return wrong if method is None else [*_misfits(rule, kind, config, method), *wrong]


def _misfits(rule: Aggregator, kind: str, config: Config, method: type[Method]) -> list[str]:
    """Return why a rule cannot act on what a method sends."""
    name, updates = config.method.name, [n for n, p in method.wire.up.items() if p.update]
    if updates and method.no_rule:
        return [f"aggregate.kind: {kind} found, but with {name} {method.no_rule}; allowed: mean"]
    if not updates:
        return [f"aggregate.kind: {kind} found, but {name} sends no update that is averaged; allowed: mean"]
    parts = ruled(method)
    if not parts:
        return [
            f"aggregate.kind: {kind} found, but {name} sends several updates ({', '.join(updates)}) and its wire does not say "
            "which is ruled: Part(..., update=True, robust=True); allowed: mean"
        ]
    unknown = [n for n in parts if method.wire.up[n].shape is ANY]
    if "rows" in rule.needs and unknown:
        return [
            f"aggregate.kind: {kind} found, which goes by coordinates, and {name} does not say those of {unknown[0]!r}"
        ]
    return []


# -- what several rules work out ---------------------------------------------------------------------------------------


def distances(gram: np.ndarray) -> np.ndarray:
    """Return squared distances (n, n) from inner products: >= 0, 0 on the diagonal."""
    own = gram.diagonal()
    d = np.maximum(own[:, None] + own[None] - gram - gram.T, 0.0)
    np.fill_diagonal(d, 0.0)
    return d


def krum_scores(gram: np.ndarray, f: int) -> np.ndarray:
    """Return Krum's score of each update, (n,): the sum of squared distances to its n - f - 2 nearest others, at least one."""
    d = distances(gram)
    np.fill_diagonal(d, np.inf)  # itself is no other
    near = max(1, len(d) - f - 2)
    return np.sort(d, axis=1)[:, : min(near, len(d) - 1)].sum(1)


def equal_shares(chosen: np.ndarray, n: int) -> np.ndarray:
    """Return the coefficients (n,) of the plain mean of the chosen updates."""
    out = np.zeros(n)
    out[chosen] = 1.0 / len(chosen)
    return out
