"""Stragglers: clients that do only a part of a round's local work (`local.work`), as in FedProx's experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys

if TYPE_CHECKING:
    from rayfed.config.schema import Config


def late(config: Config, clients: int, round: int) -> np.ndarray:
    """Return who is late in a round, client ids. clients: those that can take part. A function of seed and round alone: the same
    for every method and every ask of the round."""
    return _late(config, clients, round)[0]


def shares(config: Config, clients: int, round: int) -> np.ndarray:
    """Return the share of a round's local work that each client does, (clients,) float64 in (0, 1]; 1 for all but those that are
    late. Arguments as in `late`."""
    out, work = np.ones(clients), config.local.work
    found, rng = _late(config, clients, round)
    out[found] = work.least + (1 - work.least) * rng.random(len(found))
    return out


def _late(config: Config, clients: int, round: int) -> tuple[np.ndarray, np.random.Generator]:
    """Return who is late, and the generator that goes on to draw their shares."""
    work, rng = config.local.work, keys.numpy(keys.key(config.seed, round << 20, -1, "share of work"))
    if work.kind == "full":
        return np.zeros(0, np.int64), rng
    return rng.permutation(clients)[: int(work.stragglers * clients + 0.5)], rng
