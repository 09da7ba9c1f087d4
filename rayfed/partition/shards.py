"""Pathological label skew (McMahan et al. 2017): rows sorted by label, cut into shards, some shards for each client."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import Owned, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: `per_client` shards each, whose sizes differ by at most one."""
    k = f.partition.per_client

    def deal(y: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        if n * k > len(y):
            raise ConfigError(
                f"federation.partition.per_client: {n} clients with {k} shards each need {n * k} rows, there are {len(y)}; "
                f"allowed: at most {len(y) // n}"
            )
        order = rng.permutation(len(y))  # ties of the sort in random order
        order = order[np.argsort(y[order], kind="stable")]
        holder = rng.permutation(np.arange(n * k) % n)
        client = np.empty(len(y), np.int64)
        client[order] = holder[np.arange(len(y)) * (n * k) // len(y)]
        return client

    return within_groups(f, dataset, group, draw, deal, 1)
