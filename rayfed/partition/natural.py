"""Natural clients: the ids that the data carries, with their own validation and test rows where they have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import SHARED, TEST, VAL, Names, Owned
from rayfed.partition import groups as planted


def split(f: Any, dataset: Any, group: np.ndarray, held: int, draw: Any) -> Owned:
    """`clients` ids drawn by seed.

    Held-out clients are ids without training rows (split `test_unseen`) where the data has them: their rows are split for
    personalisation like anybody's. Elsewhere they are some of the drawn ids. Under groups of kind domain, a client's group is
    the domain of most of its rows, and its rows of other domains are nobody's.
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
    strangers = np.bincount(number[part == "test_unseen"], minlength=len(ids))
    named, least = ids != "", f.partition.min_examples
    known = np.flatnonzero(named & (examples >= least))
    unseen = np.flatnonzero(named & (examples == 0) & (strangers >= least))

    n, train_n = len(group), len(group) - held
    from_unseen = held > 0 and len(unseen) > 0
    need = train_n if from_unseen else n
    if need > len(known):
        kept_back = f" beside {held} unseen ones" if from_unseen else f" ({held} of them held out)" if held else ""
        raise ConfigError(
            f"federation.clients: {need} natural clients asked for{kept_back}, {dataset.name} has {len(known)} "
            f"with at least {least} training examples"
        )
    if from_unseen and held > len(unseen):
        raise ConfigError(
            f"federation.holdout.fraction: {held} held-out clients asked for, {dataset.name} has {len(unseen)} without training rows"
        )
    rng = draw("natural ids")
    chosen = rng.permutation(known)[:need]
    if from_unseen:
        chosen = np.concatenate([chosen, rng.permutation(unseen)[:held]])
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
    domain = np.concatenate(planted.domains(dataset, "federation.groups.kind")[1:])
    has = (owner >= 0) & (domain >= 0)
    votes = np.zeros((n, f.groups.count), np.int64)
    np.add.at(votes, (owner[has], domain[has]), 1)
    of_client = np.where(votes.any(1), votes.argmax(1), -1)
    strange = (owner >= 0) & (domain != of_client[owner])
    if test.domain is None:
        strange[n_train:] = False  # test rows that do not say theirs
    return Owned(np.where(strange, -1, owner), role, names, of_client)
