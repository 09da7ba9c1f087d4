"""Who has which modalities: those of a client, and of them those of each row. A property of the split, the same in all rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data.modalities import Modality, presence
from rayfed.data.modalities import masked as keep
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Modalities
    from rayfed.data import Dataset


def masked(
    asked: Modalities,
    dataset: Dataset,
    x: np.ndarray,
    client: np.ndarray,
    tests: np.ndarray,
    population: int,
    held: int,
    draw: Any,
) -> np.ndarray:
    """Return rows x (n, D) with what their clients have of their modalities.

    asked: `federation.modalities`; client: of the first rows, -1 without one, those after them being public; tests: numbers of the rows
    that are scored; population, held: how many clients take part and how many do not; draw: as in `rayfed.partition.draws`. Rows that no
    client has keep all that the data have; every row keeps one modality. ConfigError for names that the data do not have, a modality that
    nobody has, and clients with rows of which they have nothing.
    """
    modalities = dataset.modalities
    if not modalities:
        raise ConfigError(
            f"federation.modalities: set, {dataset.name} has rows of one kind ({dataset.kind}); allowed: data of several modalities"
        )
    own = owned(asked, modalities, population, held, draw)
    there = presence(x, modalities)
    of_client = np.flatnonzero(client >= 0)
    there[of_client] &= own[client[of_client]]
    if (none := of_client[~there[of_client].any(1)]).size:
        raise ConfigError(
            f"federation.modalities.owners: client {client[none[0]]} has rows without any of its modalities ({len(none)} rows in all); "
            f"allowed: sets of which each row of {dataset.name} has one"
        )
    tests = tests[tests < len(client)]
    train = np.setdiff1d(of_client, tests)
    shares = np.full(population + held, asked.absent)
    if asked.absent and asked.concentration is not None:
        c = asked.concentration
        shares = draw("clients' shares of absent modalities").beta(
            asked.absent * c, (1 - asked.absent) * c, len(shares)
        )
    for rows, share in ((train, shares[client[train]]), (tests, np.full(len(tests), asked.absent_test))):
        purpose = "absent modalities of tests" if rows is tests else "absent modalities"
        if share.any():
            there[rows] = _fewer(there[rows], share, draw(purpose))
    return keep(x, modalities, there)


def owned(asked: Modalities, modalities: Sequence[Modality], population: int, held: int, draw: Any) -> np.ndarray:
    """Return which modalities each client has, (N, M) bool: sets in exact proportions, among those that take part and among the others."""
    names = [m.name for m in modalities]
    if not asked.owners:
        return np.ones((population + held, len(names)), bool)
    sets = [[n.strip() for n in key.split("+")] for key in asked.owners]
    for key, found in zip(asked.owners, sets, strict=True):
        if unknown := [n for n in found if n not in names]:
            raise ConfigError(
                f"federation.modalities.owners: {key!r} names {unknown[0]!r}{nearest(unknown[0], names)}; the data have: {', '.join(names)}"
            )
    has = np.array([[n in found for n in names] for found in sets])
    shares = np.array(list(asked.owners.values()), float)
    kinds = [keys.proportional(shares, n, draw(f"modalities of {n} clients")) for n in (population, held)]
    own = has[np.concatenate(kinds).astype(np.int64)]
    if not own[:population].any(0).all():
        name = names[int(np.argmin(own[:population].any(0)))]
        raise ConfigError(
            f"federation.modalities.owners: nobody of the {population} clients that take part has modality {name!r}; allowed: sets and "
            "shares by which each modality comes to somebody"
        )
    return np.asarray(own)


def _fewer(there: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return there (n, M) without a share (n,) of what is there, at random, each row keeping at least one."""
    u = np.where(there, rng.random(there.shape), -1.0)
    best = u == u.max(1, keepdims=True)
    return there & ((u >= share[:, None]) | best)
