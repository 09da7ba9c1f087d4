"""Stragglers: clients that do only a part of a round's local work (`local.work`), as in FedProx's experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed import keys

if TYPE_CHECKING:
    from rayfed.config.schema import Config


def shares(config: Config, clients: int, round: int) -> np.ndarray:
    """Return the share of a round's local work that each client does, (clients,) float64 in (0, 1]; 1 for all but stragglers.

    clients: those that can take part. A function of seed and round alone: the same for every method and every ask of the round.
    """
    work, out = config.local.work, np.ones(clients)
    if work.kind == "full":
        return out
    rng = keys.numpy(keys.key(config.seed, round << 20, -1, "share of work"))
    late = rng.permutation(clients)[: int(work.stragglers * clients + 0.5)]
    out[late] = work.least + (1 - work.least) * rng.random(len(late))
    return out
