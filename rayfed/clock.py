"""Simulated time: how fast clients' devices are (`devices`), and the clock of methods that do not wait for all.

Nobody sleeps: a visit's duration follows from its steps, its bytes and the client's device, so that any number of actors, and any
failure of one, give the same run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import keys, traces
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.wire import ANY, Part, tensor

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.fed import Fed
    from rayfed.partition import Federation
    from rayfed.tree import Tree

COLUMNS = ("client", "speed", "up", "down")
LONGEST = 1e12  # seconds of a visit: more than any run lasts, and sums of them are exact enough
ROUNDING = 1e-12  # of sums of durations: who is due at a time is in by then


class Devices(NamedTuple):
    """The clients' devices, held-out ones too, (N,) float64 each: speed in local steps per second, up and down in bytes per second
    (infinite: transfers take no time), memory in bytes (infinite, or None: any)."""

    speed: np.ndarray
    up: np.ndarray
    down: np.ndarray
    memory: np.ndarray | None = None

    def seconds(self, clients: Any, steps: Any, up: float, down: float) -> np.ndarray:
        """Return how long visits take, (n,): steps (n,) of each client, bytes up and down of one."""
        at = np.asarray(clients, np.int64)
        return np.asarray(steps) / self.speed[at] + up / self.up[at] + down / self.down[at]


def devices(config: Config, clients: int) -> Devices | None:
    """Return the devices that the config describes; None under profile none. ConfigError where a trace cannot be used."""
    d: Any = config.devices
    if d.profile == "none":
        return None
    rng = keys.numpy(keys.key(config.seed, 0, -1, "devices"))
    if d.profile == "tiers":
        kind = keys.proportional(np.array([t.share for t in d.tiers]), clients, rng)
        speed, band, memory = (
            np.array([v or math.inf for v in found])[kind]
            for found in zip(*((t.speed, t.bandwidth, t.memory) for t in d.tiers), strict=True)
        )
        return Devices(speed, band, band, memory)
    if d.profile == "lognormal":
        factors = np.exp(d.sigma * rng.standard_normal((3, clients)))
        speed, up, down = factors * np.array([[d.speed], [d.bandwidth or math.inf], [d.bandwidth or math.inf]])
        return Devices(speed, up, down)
    return read_trace(d.file, clients, rng if d.assign == "random" else None)


def read_trace(file: str, clients: int, rng: np.random.Generator | None = None) -> Devices:
    """Return the devices of a trace: CSV whose first line is `client,speed,up,down`, and a line for each client; `inf` is allowed.

    rng: deals the file's devices to the clients at random, however many it has; None: by number. ConfigError where it cannot be read,
    or names a client not once.
    """
    lines = traces.read("devices.file", file, COLUMNS, clients if rng is None else None, whole=False)
    said = f"devices.file: {file!r}"
    ids, places, often = np.unique(lines[:, 0].astype(np.int64), return_index=True, return_counts=True)
    if rng is None:
        wrong = np.ones(clients, bool)
        wrong[ids[often == 1]] = False
        if wrong.any():
            raise ConfigError(
                f"{said} does not name client {traces.named(wrong)} once; needed: one line for each of {clients} clients"
            )
    elif (twice := ids[often > 1]).size:
        raise ConfigError(
            f"{said} names client {', '.join(map(str, twice[: traces.NAMED]))} more than once; needed: once"
        )
    table = lines[places].T[1:]
    return Devices(*(table if rng is None else table[:, traces.dealt(rng, lines, clients, said)]))


def local_steps(config: Config, federation: Federation) -> np.ndarray:
    """Return the local steps of each client's visit by the config, (clients,); a method's own number: `Method.visit_steps`."""
    sizes, local = federation.train.sizes(), config.local
    if local.steps:
        return np.where(sizes > 0, local.steps, 0)
    return (local.epochs or 1) * np.ceil(sizes / local.batch_size)


def check(config: Config) -> list[str]:
    """Return what is wrong with `devices` and `failures.stragglers`; known before there is a federation."""
    found, late = [], config.failures.stragglers
    if config.devices.profile == "none":
        for name, value in late.given():
            found.append(
                f"failures.stragglers.{name}: {value} found, but nothing reads it with devices.profile: none; allowed: leave it out, "
                "or a profile of devices"
            )
        return found
    n, asked = config.training_clients(), config.per_round()
    if late.over_select and asked + late.over_select > n:
        found.append(
            f"failures.stragglers.over_select: {late.over_select} found, allowed: at most {max(0, n - asked)} ({n} clients, {asked} asked)"
        )
    if config.devices.profile == "trace":
        try:
            devices(config, config.federation.clients)
        except ConfigError as e:
            found += e.problems
    return found


def problems(config: Config, federation: Federation, steps: np.ndarray) -> list[str]:
    """Return who would never be done, and why nobody could ever be in time; asked where the federation is known, before anything
    starts. steps: of each client's visit, (clients,)."""
    deadline, of = config.failures.stragglers.deadline_s, devices(config, federation.clients)
    if of is None:
        return []
    n = federation.population
    with np.errstate(over="ignore"):
        took = of.seconds(np.arange(n), steps[:n], 0, 0)
    if (never := took > LONGEST).any():
        return [
            f"devices: client {traces.named(never)} would take {float(took.max()):.3g} s for its steps and never be done; allowed: at most "
            f"{LONGEST:g} s"
        ]
    if deadline is None:
        return []
    least = float(took.min())
    if least <= deadline:
        return []
    return [
        f"failures.stragglers.deadline_s: {deadline:g} found, the fastest client's steps take {least:.3g} s; allowed: more than that"
    ]


def room(config: Config, federation: Federation, steps: np.ndarray) -> np.ndarray | None:
    """Return how many bytes a model may have for each client to take it, do its steps and send it within the deadline, (N,); None
    where there is no deadline, or no transfer takes time."""
    deadline, of = config.failures.stragglers.deadline_s, devices(config, federation.clients)
    if deadline is None or of is None or not np.isfinite([of.up, of.down]).any():
        return None
    n = federation.population
    left, per_byte = deadline - steps[:n] / of.speed[:n], 1 / of.up[:n] + 1 / of.down[:n]
    with np.errstate(divide="ignore"):
        return np.where(left >= 0, np.maximum(left, 1e-300) / per_byte, -1.0)


# -- methods that do not wait for all ----------------------------------------------------------------------------------

PARTS = {
    "now": Part(tensor(dtype="float64"), note="simulated seconds since the start"),
    "due": Part(tensor("N", dtype="float64"), note="when a client's reply is in; -1 where it is not at work"),
    "since": Part(tensor("N", dtype="int64"), note="the version that it was sent"),
    "version": Part(tensor(dtype="int64"), note="the server's steps so far"),
    "models": Part(ANY, note="older versions that somebody still works on"),
}


def start(clients: int) -> Tree:
    """Return the clock's parts of the server state before round 1."""
    return {
        "now": torch.zeros((), dtype=torch.float64),
        "due": torch.full((clients,), -1.0, dtype=torch.float64),
        "since": torch.zeros(clients, dtype=torch.int64),
        "version": torch.zeros((), dtype=torch.int64),
        "models": {},
    }


class Clock:
    """The clock of one round of an asynchronous method: who is at work on which version, and whose reply comes next.

    The server state has `PARTS` beside `model`; a round begins with `Clock(state, fed, durations)` and ends with `after(model)`. As many
    clients are at work as a synchronous round would ask (`federation.per_round`), drawn by `fed.sample`. What a client sends is computed
    when its reply comes in, from the version that it was sent. Replies of one instant come together, lowest numbers first, so that
    equal durations give the synchronous method's rounds.
    """

    def __init__(self, state: Tree, fed: Fed, durations: np.ndarray):
        """durations: (N,) seconds that a visit begun in this round takes each client."""
        self._state, self._fed, self._durations = state, fed, durations
        self.now, self.version = float(state["now"]), int(state["version"])
        self._due, self._since = state["due"].numpy().copy(), state["since"].numpy().copy()
        self.begun: list[int] = []  # who was sent a model in this round
        self._send(())

    @property
    def at_work(self) -> np.ndarray:
        """Return who is at work, (N,) bool."""
        return self._due >= 0

    def _send(self, away: Collection[int]) -> None:
        """Send the present model to as many clients as there are places, `away` not among them."""
        idle = ~self.at_work
        places = self._fed.config.per_round() - int((~idle).sum())
        idle[list(away)] = False
        if places <= 0 or not idle.any():
            return
        among = np.flatnonzero(idle)
        as_a_round = not away and len(among) == len(idle)
        ids = self._fed.sample() if as_a_round else self._fed.sample(places, where=among)
        self._due[list(ids)] = self.now + self._durations[list(ids)]
        self._since[list(ids)] = self.version
        self._fed.sent.append((ids, np.full(len(ids), self.now), self._due[list(ids)]))
        self.begun += ids

    def replies(self, n: int, refill: bool = True) -> dict[int, int]:
        """Wait for the next n replies: client -> the version that it was sent; fewer where nobody else is at work.

        refill: whether another client starts with the present model as soon as one has replied, or only after the server's step.
        """
        came: dict[int, int] = {}
        while len(came) < n and self.at_work.any():
            self.now = float(self._due[self.at_work].min())
            for client in np.flatnonzero(self._due == self.now)[: n - len(came)].tolist():
                came[client] = self._arrived(client)
                self._due[client] = -1.0
            if refill and len(came) < n:
                self._send(came)
        return came

    def until(self, time: float) -> dict[int, int]:
        """Wait until a time: client -> the version that it was sent, of those whose reply is in by then."""
        here = self.at_work & (self._due <= time * (1 + ROUNDING))
        self._due[here], self.now = -1.0, time
        return {c: self._arrived(c) for c in np.flatnonzero(here).tolist()}

    def _arrived(self, client: int) -> int:
        """Return the version that a client was sent whose reply is in, and note how stale it is."""
        version = int(self._since[client])
        stale = self._fed.stale
        stale[self.version - version] = stale.get(self.version - version, 0) + 1
        return version

    def versions(self, came: Mapping[int, int]) -> list[tuple[Tree, int, list[int]]]:
        """Return (model, staleness, clients) for each version that replies come from, the oldest first: an ask for each."""
        return [
            (self._model(v), self.version - v, [c for c in came if came[c] == v]) for v in sorted(set(came.values()))
        ]

    def _model(self, version: int) -> Tree:
        model: Tree = self._state["model"] if version == self.version else self._state["models"][str(version)]
        return model

    def after(self, model: Tree | None) -> Tree:
        """Return the clock's parts of the next server state, and the model; None as the model where the server has taken no step."""
        self._fed.elapse(self.now - float(self._state["now"]))
        stepped = model is not None
        used = {int(v) for v in self._since[self.at_work]} - ({self.version} if not stepped else set())
        return {
            "model": model if stepped else self._state["model"],
            "now": torch.tensor(self.now, dtype=torch.float64),
            "due": torch.from_numpy(self._due),
            "since": torch.from_numpy(self._since),
            "version": torch.tensor(self.version + stepped),
            "models": {str(v): self._model(v) for v in sorted(used)},
        }
