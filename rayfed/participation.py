"""Who is available in a round, where clients come by themselves: a function of seed and round alone (`federation.participation`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys, traces
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

BY_THEMSELVES = (
    "bernoulli",
    "markov",
    "periodic",
    "trace",
)  # kinds of participation whose clients are not always there


LAST = 100_000  # round of a trace


class Availability:
    """Tell who is there, round by round.

    chances: (N,) float64, how likely each client is there in a round: the process's own chance, of a trace the share of its rounds.
    """

    def __init__(self, config: Config, federation: Federation):
        """ConfigError where a trace cannot be used."""
        p: Any = config.federation.participation
        self.settings, self.seed, self.clients = p, config.seed, federation.population
        if p.kind == "trace":
            self._there = _trace(config, self.clients)
            self.chances = self._there.mean(0)
        else:
            self.chances = _chances(config, federation)
        if p.kind == "periodic":
            self.chances = _lengths(self.chances, p.period) / p.period
        self._draw: Callable[[int], np.ndarray] = getattr(self, f"_{p.kind}")
        self._known: tuple[int, np.ndarray] | None = None  # the last round that was asked for
        self._last: tuple[int, np.ndarray] | None = None  # of a Markov chain: a round, who was there

    def there(self, round: int) -> np.ndarray:
        """Return the ids of the clients that are available in a round (from 1), sorted."""
        return np.flatnonzero(self.mask(round))

    def mask(self, round: int) -> np.ndarray:
        """Return who is available in a round, (N,) bool."""
        if self._known is None or self._known[0] != round:
            self._known = round, self._draw(round)
        return self._known[1]

    def _uniform(self, purpose: str, round: int = 0) -> np.ndarray:
        return keys.numpy(keys.key(self.seed, round << 20, -1, purpose)).random(self.clients)

    def _bernoulli(self, round: int) -> np.ndarray:
        return self._uniform("available", round) < self.chances

    def _markov(self, round: int) -> np.ndarray:
        """Walk from round 1 on, or from the last round that was asked for. Stationary: its share of rounds is the chance."""
        come = np.full(self.clients, self.settings.switch)
        go = come * (1 / self.chances - 1)
        come, go = come / np.maximum(go, 1), np.minimum(go, 1)
        at, there = (
            self._last if self._last and self._last[0] <= round else (1, self._uniform("available", 1) < self.chances)
        )
        for r in range(at + 1, round + 1):
            drawn = self._uniform("available", r)
            there = np.where(there, drawn >= go, drawn < come)
        self._last = round, there
        return there

    def _periodic(self, round: int) -> np.ndarray:
        n = self.settings.period
        phase = np.floor(self._uniform("phase") * n)
        return (round - 1 + phase) % n < np.rint(n * self.chances)

    def _trace(self, round: int) -> np.ndarray:
        found: np.ndarray = self._there[(round - 1) % len(self._there)]
        return found


def _lengths(chances: np.ndarray, period: int) -> np.ndarray:
    """Return in how many rounds of a period each client is there, (N,): at least one and not all, unless its chance is 1."""
    found: np.ndarray = np.where(chances < 1, np.clip(np.rint(period * chances), 1, period - 1), period)
    return found


def _chances(config: Config, federation: Federation) -> np.ndarray:
    """Return the chance of each client, (N,) float64 in (0, 1].

    labels: p_i = min(1, max(least, chance C <shares of i's labels, kappa>)), kappa ~ Dir(alpha), one draw for all (code of Wang and Ji
    2024, 2306.03401). A list: by planted group.
    """
    p: Any = config.federation.participation
    n = federation.population
    if p.chances == "labels":
        kappa = keys.numpy(keys.key(config.seed, 0, -1, "weights of classes")).dirichlet([p.alpha] * federation.classes)
        counts = federation.class_counts[:n].astype(np.float64)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        return np.clip(p.chance * federation.classes * (shares @ kappa), p.least, 1.0)
    if p.chances == "equal":
        return np.full(n, p.chance)
    return np.asarray(p.chances, np.float64)[federation.group[:n]]


def unknown(config: Config) -> list[str]:
    """Return why nobody knows the chance with which a client takes part in a round; [] where it is known (`Fed.chances`)."""
    kind, n = config.federation.participation.kind, config.training_clients()
    if late := [
        f"failures.stragglers.{name}: {value:g} found, and nobody knows a client's chance to be in time; allowed: leave it out"
        for name, value in config.failures.stragglers.given()
    ]:
        return late
    if config.per_round() >= n:
        return []
    if config.federation.select != "random":
        return [
            f"federation.select: {config.federation.select} found, and nobody knows a client's chance to be asked; allowed: random"
        ]
    if kind not in BY_THEMSELVES:
        return []
    return [
        f"federation.per_round: {config.federation.per_round} found, with federation.participation.kind: {kind} the chances of clients "
        f"are known only where everybody who is there is asked; allowed: null"
    ]


def problems(config: Config) -> list[str]:
    """Return what is wrong with `federation.participation` beyond its keys; known before there is a federation."""
    p, groups = config.federation.participation, config.federation.groups
    where, found = "federation.participation", getattr(p, "chances", "equal")
    if isinstance(found, list) and groups.kind in ("none", "domain"):
        return [
            f"{where}.chances: {found} found, federation.groups.kind: {groups.kind}; a chance for each planted group needs groups"
        ]
    if isinstance(found, list) and len(found) != groups.count:
        return [
            f"{where}.chances: {len(found)} found, federation.groups.count: {groups.count}; allowed: one for each group"
        ]
    if p.kind == "trace":
        try:
            _trace(config, config.training_clients())
        except ConfigError as e:
            return e.problems
    return []


def _trace(config: Config, clients: int) -> np.ndarray:
    p: Any = config.federation.participation
    rng = keys.numpy(keys.key(config.seed, 0, -1, "stays"))
    return read_trace(p.file, clients, rng if p.assign == "random" else None)


def read_trace(file: str, clients: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return who is available in each round of a trace, (rounds, clients) bool; after its last round it begins again.

    file: CSV whose first line is `client,first,last`; each further line is a stay: a client's number and the first and the last round of
    it, from 1. rng: deals the file's clients to those that there are at random; None: by number. ConfigError where it cannot be read,
    leaves a client out, or has a round without anybody.
    """
    where = "federation.participation.file"
    within = clients if rng is None else None
    stays = traces.read(where, file, ("client", "first", "last"), within, whole=True).astype(np.int64)
    if (end := int(stays[:, 2].max(initial=0))) > LAST:
        raise ConfigError(
            f"{where}: {file!r} ends in round {end}, allowed: at most {LAST}; after its last round it begins again"
        )
    if len(back := stays[stays[:, 1] > stays[:, 2]]):
        client, first, last = back[0]
        raise ConfigError(
            f"{where}: {file!r} has a stay of client {client} in rounds {first} to {last}, allowed: first <= last"
        )
    if rng is None:
        there = _stays(stays, clients)
    else:
        at = traces.dealt(rng, stays, clients, f"{where}: {file!r}")
        ids, stays[:, 0] = np.unique(stays[:, 0], return_inverse=True)
        there = _stays(stays, len(ids))[:, at]
    found = []
    if (never := ~there.any(0)).any():
        found.append(f"{where}: {file!r} never names client {traces.named(never)}; needed: a stay of every client")
    if (empty := np.r_[False, ~there.any(1)]).any():
        found.append(f"{where}: {file!r} has nobody in round {traces.named(empty)}; needed: somebody in every round")
    if found:
        raise ConfigError(found)
    return there


def _stays(stays: np.ndarray, clients: int) -> np.ndarray:
    """Return who is there, (rounds, clients) bool, of stays (n, 3): client, first and last round."""
    there = np.zeros((int(stays[:, 2].max(initial=0)), clients), bool)
    for client, first, last in stays:
        there[first - 1 : last, client] = True
    return there
