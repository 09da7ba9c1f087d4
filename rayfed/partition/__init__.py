"""Who holds what: from a data set and `federation` to index arrays, in pure NumPy, decided by the seed alone."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.errors import ConfigError
from rayfed.partition import groups as planted

if TYPE_CHECKING:
    from rayfed.config import Config
    from rayfed.data import Dataset


@dataclass(frozen=True)
class Index:
    """Rows per client, compressed: client i has rows[offsets[i]:offsets[i + 1]]; offsets (n + 1,), rows int64."""

    offsets: np.ndarray
    rows: np.ndarray

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[self.offsets[i] : self.offsets[i + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sizes(self) -> np.ndarray:
        """Examples per client, (n,)."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Index:
        """From one row array per client."""
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        return cls(offsets, np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64))


@dataclass(frozen=True)
class Federation:
    """The whole split. Clients 0..population-1 take part, the others are held out ("unseen").

    arrays: x, y of all rows, training rows first, then the pooled test rows, after the planted groups' transforms;
    train, val, test: rows per client; pool: rows of the pooled test set; group: (N,) planted group or -1; names: natural
    ids or numbers; class_counts: (N, C) of the train split.
    """

    arrays: dict[str, np.ndarray]
    train: Index
    val: Index
    test: Index
    pool: np.ndarray
    population: int
    group: np.ndarray
    names: tuple[str, ...]
    class_counts: np.ndarray
    classes: int
    input_shape: tuple[int, ...]
    kind: str
    label_names: tuple[str, ...]

    @property
    def clients(self) -> int:
        """N, held-out clients included."""
        return len(self.group)

    def numpy(self) -> dict[str, Any]:
        """Arrays and plain values only, for an object store."""
        d = dict(self.__dict__)
        for name in ("train", "val", "test"):
            d[name] = {"offsets": d[name].offsets, "rows": d[name].rows}
        return d

    @classmethod
    def from_numpy(cls, d: dict[str, Any]) -> Federation:
        """What `numpy` gave; arrays are used as they are, not copied."""
        made: dict[str, Any] = {k: Index(**v) if k in ("train", "val", "test") else v for k, v in d.items()}
        return cls(**made)


def build(config: Config, dataset: Dataset | None = None) -> Federation:
    """The federation of a config. ConfigError if the data cannot be split as asked."""
    if dataset is None:
        from rayfed import data

        dataset = data.load(config.task.data, config.seed)
    f = config.federation

    def rng(purpose: str) -> np.random.Generator:
        return keys.numpy(keys.key(config.seed, 0, -1, f"partition/{purpose}"))

    module = importlib.import_module(f"rayfed.partition.{f.partition.kind}")
    held = f.clients - config.training_clients()
    group = planted.assign(f.groups, f.clients, rng("groups"))
    owned = module.split(
        f, dataset, group, held, rng
    )  # rows, val and test rows of each client, its name; held-out ones last
    few = [i for i, rows in enumerate(owned.rows) if len(rows) == 0]
    if few:
        raise ConfigError(
            f"federation: {len(few)} of {f.clients} clients would hold no training example; "
            "lower federation.clients or partition.min_examples"
        )
    train, val, test = [], [], []
    draw = rng("client splits")
    for i, rows in enumerate(owned.rows):
        order = draw.permutation(rows)
        has_test = owned.test is not None and len(owned.test[i]) > 0
        n_test = 0 if has_test else min(round(f.split.test * len(rows)), len(rows) - 1)
        has_val = owned.val is not None and len(owned.val[i]) > 0
        n_val = 0 if has_val else min(round(f.split.val * len(rows)), len(rows) - 1 - n_test)
        test.append(np.sort(owned.test[i] if has_test else order[:n_test]))
        val.append(np.sort(owned.val[i] if has_val else order[n_test : n_test + n_val]))
        train.append(np.sort(order[n_test + n_val :]))
    n_train = len(dataset.train.y)
    x = np.concatenate([dataset.train.x, dataset.test.x])
    y = np.concatenate([dataset.train.y, dataset.test.y])
    split = dataset.test.split
    pool = n_train + (np.flatnonzero(split != "test_unseen") if split is not None else np.arange(len(dataset.test.y)))
    row_group = np.full(len(y), -1)
    for i in range(f.clients):
        for rows in (train[i], val[i], test[i]):
            row_group[rows] = group[i]
    population = f.clients - held
    weights = np.bincount(
        group[:population][group[:population] >= 0],
        [len(train[i]) for i in range(population) if group[i] >= 0],
        minlength=max(1, f.groups.count),
    )
    free = pool[row_group[pool] < 0]
    row_group[free] = planted.share(weights, len(free), rng("pooled test")) if f.groups.kind != "none" else -1
    x, y = planted.transform(f.groups, x, y, row_group, dataset.classes, rng("transforms"))
    counts = np.stack([np.bincount(y[rows], minlength=dataset.classes) for rows in train]).astype(np.int64)
    return Federation(
        {"x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y)}, Index.of(train), Index.of(val), Index.of(test), pool, population,
        group, owned.names, counts, dataset.classes, dataset.input_shape, dataset.kind, dataset.label_names,
    )  # fmt: skip


@dataclass(frozen=True)
class Owned:
    """What a partition decides: rows of the concatenated (train, test) rows per client, held-out clients last."""

    rows: list[np.ndarray]
    names: tuple[str, ...]
    val: list[np.ndarray] | None = None
    test: list[np.ndarray] | None = None


def within_groups(f: Any, dataset: Dataset, group: np.ndarray, rng: Any, deal: Any) -> Owned:
    """Deal the training rows to clients group by group, so that class-subset groups see only their classes.

    deal(y, clients, rng) -> one array of positions per client; every row that some group may hold goes to one client.
    """
    y = dataset.train.y
    rows: list[np.ndarray] = [np.zeros(0, np.int64) for _ in group]
    pieces = planted.rows_of(f.groups, y, group, dataset.classes, rng("class sets"))
    for g, mine in pieces.items():
        members = np.flatnonzero(group == g)
        least = getattr(f.partition, "min_examples", 1)
        if len(mine) < len(members) * least:
            raise ConfigError(
                f"federation.clients: {len(members)} clients of one group cannot get {least} examples each "
                f"from {len(mine)} rows"
            )
        for client, at in zip(members, deal(y[mine], len(members), rng(f"deal {g}")), strict=True):
            rows[client] = np.sort(mine[at])
    return Owned(rows, tuple(str(i) for i in range(len(group))))


def top_up(parts: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Move single examples from the largest clients until everyone has `least`."""
    sizes = np.array([len(p) for p in parts])
    for i in np.flatnonzero(sizes < least):
        while len(parts[i]) < least:
            rich = int(np.argmax([len(p) for p in parts]))
            if len(parts[rich]) <= least:
                return parts
            parts[i] = np.append(parts[i], parts[rich][-1])
            parts[rich] = parts[rich][:-1]
    return parts
