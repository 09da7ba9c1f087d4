"""Pathological label skew (McMahan et al. 2017): rows sorted by label, cut into shards, some shards for each client."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import Owned, within_groups


def split(f: Any, dataset: Any, group: np.ndarray, held: int, rng: Any) -> Owned:
    """`per_client` shards each; shard sizes differ by at most one."""
    k = f.partition.per_client

    def deal(y: np.ndarray, n: int, r: np.random.Generator) -> list[np.ndarray]:
        if n * k > len(y):
            raise ConfigError(
                f"federation.partition.per_client: {n} clients with {k} shards each need {n * k} rows, there are {len(y)}"
            )
        order = r.permutation(len(y))
        shards = np.array_split(order[np.argsort(y[order], kind="stable")], n * k)
        dealt = r.permutation(n * k).reshape(n, k)
        return [np.concatenate([shards[s] for s in mine]) for mine in dealt]

    return within_groups(f, dataset, group, rng, deal)
