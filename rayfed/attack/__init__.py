"""Attacks by config (`attacks`): clients that poison their data, or what they send. One file per kind; the folder is the registry.

Attackers are the first clients of one order that the seed draws, so attacks with the same `clients` are the same clients' (a trigger
in the data and a scaled update), and a smaller share is part of a larger one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from rayfed import keys
from rayfed.config.parts import Registry
from rayfed.config.schema import Section
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.tree import Tree


class AttackSettings(Section):
    """Settings that all attacks have."""

    clients: int | float | list[int] = Field(
        description="Attackers among the clients that take part: a share, a number, or their ids."
    )

    @field_validator("clients")
    @classmethod
    def _amount(cls, v: Any) -> Any:
        if isinstance(v, list):
            if len(set(v)) < len(v) or any(c < 0 for c in v):
                raise ValueError(f"{v} found, allowed: different ids >= 0")
        elif v < 0 or (isinstance(v, float) and v >= 1):
            raise ValueError(f"{v} found, allowed: a share in [0, 1), a whole number >= 0, or a list of ids")
        return v


class Rows(NamedTuple):
    """What a data attack knows of the data: the number of classes, the kind of inputs, the largest value in them."""

    classes: int
    kind: str
    high: float


class Attack:
    """Base of an attack. What it acts on decides where it happens:

    "data"    `poison`: the training rows that an attacker holds, when the data is split.
    "update"  `change`: what an attacker sends, between its visit's end and the fold, one attacker by itself.
    "craft"   `craft`: the same, by attackers who know each other's honest updates: they train first, and agree on one update.
    """

    Settings: ClassVar[type[AttackSettings]] = AttackSettings
    place: ClassVar[Literal["data", "update", "craft"]] = "update"
    marks: ClassVar[bool] = False  # whether its rows carry a mark (`stamp`) that means `settings.target`
    relabels: ClassVar[bool] = False  # whether what it does to data is done to labels
    lasting: ClassVar[bool] = False  # whether the key that `change` is given is the same in all rounds

    def __init__(self, settings: Any):
        self.settings = settings

    def fits(self, rows: Rows) -> str | None:
        """Return why these data cannot be poisoned, as the end of a sentence that begins with a setting's name; None if they can."""
        return None

    def poison(
        self, x: np.ndarray, y: np.ndarray, rows: Rows, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (x, y) of an attacker's training rows, (m, ...) and (m,), of the same shapes and types."""
        raise TypeError(f"{type(self).__name__} does not say what it does to data")

    def stamp(self, x: np.ndarray, rows: Rows) -> np.ndarray:
        """Return marked copies of inputs (m, ...)."""
        raise TypeError(f"{type(self).__name__} has no mark")

    def change(self, update: Tree, key: Tensor) -> Tree:
        """Return what is sent in the place of an update, whose leaves have no axis of clients; key: 0-d int64."""
        raise TypeError(f"{type(self).__name__} does not say what it does to an update")

    def craft(self, rows: Tensor, asked: int) -> Tensor:
        """Return some coordinates of the update that all attackers send, (b,), from those of their honest ones, (a, b).

        asked: how many clients the round asks.
        """
        raise TypeError(f"{type(self).__name__} does not say what attackers agree on")


KINDS = Registry(__name__, __path__, Attack)


def of(config: Config) -> list[Attack]:
    """Return the attacks of a config whose settings are valid, in its order."""
    return [KINDS.make(chosen) for chosen in config.attacks]


def on_updates(config: Config) -> list[str]:
    """Return the kinds of a config's attacks that act on updates, of those that are known."""
    known = KINDS.names()
    return [a.kind for a in config.attacks if a.kind in known and KINDS.get(a.kind).place != "data"]


def unread(config: Config, kind: str) -> list[str]:
    """Return why attacks on labels do nothing where a task of this kind reads none in training."""
    return [
        f"attacks.{i}.kind: {a.kind} found, which changes labels, and task.kind: {kind} reads none in training; "
        "allowed: corrupt, or attacks on updates"
        for i, a in enumerate(config.attacks)
        if KINDS.get(a.kind).relabels
    ]


def attackers(config: Config, attack: Attack) -> np.ndarray:
    """Return the ids of an attack's clients, (k,) int64, sorted."""
    asked, n = attack.settings.clients, config.training_clients()
    if isinstance(asked, list):
        return np.array(sorted(asked), np.int64)
    k = asked if isinstance(asked, int) else (max(1, round(asked * n)) if asked else 0)
    return np.sort(keys.numpy(keys.key(config.seed, 0, -1, "attackers")).permutation(n)[:k]).astype(np.int64)


def everyone(config: Config) -> np.ndarray:
    """Return the ids of all clients that attack in any way, sorted."""
    found = [attackers(config, a) for a in of(config)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def problems(config: Config, method: type[Method] | None) -> list[str]:
    """Return what is wrong with `attacks`, each by itself, together, and for a method, where that is known."""
    out: list[str] = []
    for i, chosen in enumerate(config.attacks):
        out += KINDS.problems(chosen, f"attacks.{i}")
    if out:
        return out
    n, made = config.training_clients(), of(config)
    for i, attack in enumerate(made):
        asked, where = attack.settings.clients, f"attacks.{i}.clients"
        if isinstance(asked, list) and (wrong := [c for c in asked if c >= n]):
            held = (
                f"it is held out ({n} to {config.federation.clients - 1} are)"
                if wrong[0] < config.federation.clients
                else ""
            )
            out.append(f"{where}: {wrong[0]} found, {held or 'there is no such client'}; allowed: 0 to {n - 1}")
        elif n >= 1 and len(attackers(config, attack)) >= n:
            out.append(f"{where}: {asked} found, one client at least is honest; allowed: at most {n - 1} of {n}")
        if attack.place != "data" and method is not None and not any(p.update for p in method.wire.up.values()):
            kind = config.attacks[i].kind
            out.append(
                f"attacks.{i}.kind: {kind} found, but {config.method.name} sends no update; allowed: attacks on data"
            )
    for place, what in (("craft", "attackers agree on one update"), ("marks", "one trigger is scored")):
        several = [
            c.kind
            for c, a in zip(config.attacks, made, strict=True)
            if (a.marks if place == "marks" else a.place == place)
        ]
        if len(several) > 1:
            out.append(f"attacks: {' and '.join(several)} found, {what}; allowed: one of them")
    return out


class Poisoned(NamedTuple):
    """Data after the attacks on them. triggered: rows of the arrays, (m,), that follow all others: copies of honest clients' test
    rows with an attacker's trigger, whose label is the attacker's class; owner: their clients, (m,)."""

    x: np.ndarray
    y: np.ndarray
    triggered: np.ndarray
    owner: np.ndarray


def poison(
    config: Config,
    x: np.ndarray,
    y: np.ndarray,
    train: list[np.ndarray],
    test: list[np.ndarray],
    kind: str,
    classes: int,
) -> Poisoned:
    """Return the data after all attacks on them; x is written to.

    train, test: the rows of each client that takes part. ConfigError where an attack does not fit the data.
    """
    y = y.copy()
    rows = Rows(classes, kind, float(x.max()) if x.dtype.kind in "fiu" and x.size else 0.0)
    triggered, owner = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for i, attack in enumerate(of(config)):
        if attack.place != "data":
            continue
        if wrong := attack.fits(rows):
            raise ConfigError(f"attacks.{i}.{wrong}")
        mine = attackers(config, attack)
        for client in mine.tolist():
            at, rng = train[client], keys.numpy(keys.key(config.seed, 0, client, f"attack {i} on data"))
            x[at], y[at] = attack.poison(x[at], y[at], rows, rng)
        if attack.marks:
            target = attack.settings.target
            honest = sorted(set(range(len(test))) - set(mine.tolist()))
            held = {c: test[c][y[test[c]] != target] for c in honest}
            source = np.concatenate([*held.values(), np.zeros(0, np.int64)])
            owner = np.repeat(honest, [len(r) for r in held.values()]).astype(np.int64)
            triggered = len(y) + np.arange(len(source))
            x = np.concatenate([x, attack.stamp(x[source], rows)])
            y = np.concatenate([y, np.full(len(source), target, y.dtype)])
    return Poisoned(x, y, triggered, owner)
