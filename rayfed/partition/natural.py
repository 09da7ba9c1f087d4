"""Natural clients: the ids that the data carries, with their own validation and test rows where they have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError, nearest
from rayfed.partition import SHARED, TEST, VAL, Names, Owned
from rayfed.partition import groups as planted

if TYPE_CHECKING:
    from rayfed.data import Dataset


def split(f: Any, dataset: Dataset, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: `clients` ids drawn by seed.

    Held-out clients are ids without training rows (split `test_unseen`) where the data has them: their rows are split for
    personalisation like anybody's. Elsewhere they are some of the drawn ids; under `holdout.domain` ids of that domain, all others
    take part. Under groups of kind domain, a client's group is
    the domain of most of its rows, and its rows of other domains are nobody's. ConfigError where there are too few ids.
    """
    train, test = dataset.train, dataset.test
    if train.client is None:
        raise ConfigError(
            f"federation.partition.kind: natural found, but {dataset.name} has no client column "
            "(task.data.client: COLUMN names one); allowed without: any other kind"
        )
    n_train, n_test = len(train.y), len(test.y)
    client = np.concatenate([train.client, test.client if test.client is not None else np.full(n_test, "")])
    part = np.concatenate([
        train.split if train.split is not None else np.full(n_train, "train"),
        test.split if test.split is not None else np.full(n_test, "test"),
    ])  # fmt: skip
    ids, number = np.unique(client, return_inverse=True)
    rows_to_train = part == "train"
    rows_to_train[n_train:] = False
    examples = np.bincount(number[rows_to_train], minlength=len(ids))
    unseen_rows = np.bincount(number[part == "test_unseen"], minlength=len(ids))
    named, least = ids != "", f.partition.min_examples
    known = np.flatnonzero(named & (examples >= least))
    unseen = np.flatnonzero(named & (examples == 0) & (unseen_rows >= least))
    if f.holdout.domain is not None:
        known, unseen = _apart(dataset, number, known, f.holdout.domain)

    n = len(group)
    of = "without training rows" if f.holdout.domain is None else f"of domain {f.holdout.domain}"
    chosen = _draw_ids(dataset.name, n, held, known, unseen, of, least, draw("natural ids"))
    client_of = np.full(len(ids), -1, np.int64)
    client_of[chosen] = np.arange(n)
    owner = client_of[number]
    role = np.full(len(client), SHARED, np.int8)
    role[part == "valid"] = VAL
    role[part == "test"] = TEST
    if f.groups.kind == "classes":  # a client's rows of other classes are nobody's
        y = np.concatenate([train.y, test.y])
        owner = np.where(planted.holds(f.groups, dataset.classes)[group[owner], y] & (owner >= 0), owner, -1)
    names = Names(n, ids[chosen])
    if f.groups.kind != "domain":
        return Owned(owner, role, names)
    owner, group = _by_domain(dataset, owner, n, f.groups.count)
    return Owned(owner, role, names, group)


def _apart(dataset: Dataset, number: np.ndarray, known: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids of other domains, ids of domain `name`) of known ids: the domain of most of an id's rows."""
    names, train, test = planted.domains(dataset, "federation.holdout.domain")
    if name not in names:
        raise ConfigError(
            f"federation.holdout.domain: {name!r} found{nearest(name, names)}, {dataset.name} has: {', '.join(names)}"
        )
    domain = np.concatenate([train, test])
    votes = np.zeros((int(number.max()) + 1, len(names)), np.int64)
    np.add.at(votes, (number[domain >= 0], domain[domain >= 0]), 1)
    of = votes.argmax(1) == names.index(name)
    return known[~of[known]], known[of[known]]


def _draw_ids(
    name: str, n: int, held: int, known: np.ndarray, unseen: np.ndarray, of: str, least: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the numbers of n ids, the held-out ones last: from `unseen` if it has any, else from `known` too."""
    from_unseen = held > 0 and len(unseen) > 0
    need = n - held if from_unseen else n
    if need > len(known):
        unseen_too = (
            f" in addition to {held} unseen ones" if from_unseen else f" ({held} of them held out)" if held else ""
        )
        raise ConfigError(
            f"federation.clients: {need} natural clients asked for{unseen_too}, {name} has {len(known)} "
            f"with at least {least} training examples"
        )
    if from_unseen and held > len(unseen):
        raise ConfigError(
            f"federation.holdout.fraction: {held} held-out clients asked for, {name} has {len(unseen)} {of}"
        )
    chosen = rng.permutation(known)[:need]
    return np.concatenate([chosen, rng.permutation(unseen)[:held]]) if from_unseen else chosen


def _by_domain(dataset: Dataset, owner: np.ndarray, n: int, domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the owners without rows of another domain than most of their owner's, the domain of each of n clients)."""
    domain = np.concatenate(planted.domains(dataset, "federation.groups.kind")[1:])
    has = (owner >= 0) & (domain >= 0)
    votes = np.zeros((n, domains), np.int64)
    np.add.at(votes, (owner[has], domain[has]), 1)
    of_client = np.where(votes.any(1), votes.argmax(1), -1)
    other = (owner >= 0) & (domain != of_client[owner])
    if dataset.test.domain is None:
        other[len(dataset.train.y) :] = False  # test rows that do not say theirs
    return np.where(other, -1, owner), of_client
