"""Domain skew: every client holds rows of one domain (writer population, camera, hospital ...), labels as they come in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import Owned, within_groups
from rayfed.partition import groups as planted


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: clients are spread over the domains in proportion to the rows, at least one in each.

    Sizes differ by at most one inside a domain. A share `mixed` of every domain's rows is dealt evenly over all clients
    instead. Rows without a domain are nobody's. Under groups of kind domain, the groups decide.
    """
    p = f.partition
    names, code, _ = planted.domains(dataset, "federation.partition.kind")

    def deal(mine: np.ndarray, n: int, rng: np.random.Generator, held: int) -> np.ndarray:
        present, of_row, rows = np.unique(mine, return_inverse=True, return_counts=True)
        of_client = planted.spread(rows, n)
        if len(np.unique(of_client[: n - held])) < len(present):
            raise ConfigError(
                f"federation.clients: {max(n - held, 0)} clients that take part found for {len(present)} domains of "
                f"{dataset.name}, allowed: at least {len(present)} (of each planted group)"
            )
        client = np.full(len(mine), -1, np.int64)
        order = rng.permutation(len(mine))
        shared = []
        for d in range(len(present)):
            its = order[of_row[order] == d]
            cut = round(p.mixed * len(its))
            members = rng.permutation(np.flatnonzero(of_client == d))
            shared.append(its[:cut])
            client[its[cut:]] = members[np.arange(len(its) - cut) % len(members)]
        everywhere = np.concatenate(shared)  # domain after domain: every client gets its share of each
        client[everywhere] = rng.permutation(n)[np.arange(len(everywhere)) % n]
        size = np.bincount(client, minlength=n)
        if size.min() < p.min_examples:
            d = int(of_client[size.argmin()])
            raise ConfigError(
                f"federation.partition.min_examples: domain {names[present[d]]!r} has {rows[d]} rows for "
                f"{(of_client == d).sum()} clients, which leaves one with {size.min()}; allowed: fewer clients, or a smaller "
                "min_examples"
            )
        return client

    return within_groups(f, dataset, group, draw, deal, 1, of=code, rows=np.flatnonzero(code >= 0), held=held)
