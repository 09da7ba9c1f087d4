"""Natural clients: the ids that the data carries, with their own validation and test rows where they have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed.errors import ConfigError
from rayfed.partition import Owned


def split(f: Any, dataset: Any, group: np.ndarray, held: int, rng: Any) -> Owned:
    """`clients` ids drawn by seed. Held-out clients are ids without training rows (split `test_unseen`) where the data has
    them, else some of the drawn ones."""
    train, test = dataset.train, dataset.test
    if train.client is None:
        raise ConfigError("federation.partition.kind: natural needs natural clients, but the data has no client column")
    n_train = len(train.y)
    client = np.concatenate([train.client, test.client if test.client is not None else np.full(len(test.y), "")])
    part = np.concatenate([
        train.split if train.split is not None else np.full(n_train, "train"),
        test.split if test.split is not None else np.full(len(test.y), "test"),
    ])  # fmt: skip
    ids, counts = np.unique(train.client[part[:n_train] != "valid"], return_counts=True)
    known = ids[counts >= f.partition.min_examples]
    unseen = np.setdiff1d(np.unique(client[part == "test_unseen"]), ids)
    want = f.clients - held
    from_unseen = held > 0 and len(unseen) > 0
    need = want if from_unseen else f.clients
    if need > len(known):
        raise ConfigError(
            f"federation.clients: {need} natural clients asked, the data has {len(known)} "
            f"with at least {f.partition.min_examples} training examples"
        )
    if from_unseen and held > len(unseen):
        raise ConfigError(
            f"federation.holdout: {held} held-out clients asked, the data has {len(unseen)} without training rows"
        )
    r = rng("natural ids")
    chosen = list(r.permutation(known)[:need]) + (list(r.permutation(unseen)[:held]) if from_unseen else [])
    order = np.argsort(client, kind="stable")
    lo, hi = (np.searchsorted(client[order], chosen, side=s) for s in ("left", "right"))
    rows, val, own_test = [], [], []
    for a, b in zip(lo, hi, strict=True):
        mine = np.sort(order[a:b])
        kind = part[mine]
        rows.append(mine[(kind == "train") | (kind == "test_unseen")])
        val.append(mine[kind == "valid"])
        own_test.append(mine[kind == "test"])
    return Owned(rows, tuple(str(c) for c in chosen), val, own_test)
