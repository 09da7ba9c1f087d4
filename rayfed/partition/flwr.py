"""A partitioner of Flower's `flwr_datasets`, or another class with its interface, by its path."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.config.own_errors import contained, describe
from rayfed.errors import ConfigError
from rayfed.partition import Owned, within_groups

if TYPE_CHECKING:
    from rayfed.data import Dataset

HELD = "rayfed_row"  # the column by which rows are found again


def split(f: Any, dataset: Dataset, group: np.ndarray, held: int, draw: Any) -> Owned:
    """Return who holds each row: partition i is client i; rows that the partitioner leaves out are nobody's.

    It is given `num_partitions` (the clients of a planted group) and `seed` where it takes them and the options do not say, and a
    `datasets.Dataset` with the columns label, client and domain as far as the data has them. ConfigError where it cannot be
    imported, takes other options, fails, or gives another number of partitions than there are clients.
    """
    p, train = f.partition, dataset.train
    cls = load(p.partitioner)
    columns = {"label": train.y, "client": train.client, "domain": train.domain}

    def deal(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        options = dict(p.options)
        takes = inspect.signature(cls).parameters
        for name, value in (("num_partitions", n), ("seed", int(rng.integers(2**31)))):
            if name in takes:
                options.setdefault(name, value)
        try:
            with contained():
                return _dealt(cls(**options), {k: v[rows] for k, v in columns.items() if v is not None}, n, len(rows))
        except ConfigError:
            raise
        except Exception as e:
            raise ConfigError(f"federation.partition: {p.partitioner} raised {describe(e)}") from e

    return within_groups(f, dataset, group, draw, deal, 1, of=np.arange(len(train.y)))


def _dealt(partitioner: Any, columns: dict[str, np.ndarray], n: int, rows: int) -> np.ndarray:
    import datasets

    partitioner.dataset = datasets.Dataset.from_dict({HELD: np.arange(rows), **columns})
    if (found := int(partitioner.num_partitions)) != n:
        raise ConfigError(
            f"federation.clients: {n} found, {type(partitioner).__name__} makes {found} partitions; allowed: {found}"
        )
    client = np.full(rows, -1, np.int64)
    for i in range(n):
        client[np.asarray(partitioner.load_partition(i)[HELD], np.int64)] = i
    return client


def load(path: str) -> Any:
    """Return the class of a path, `package.module.Class`. ConfigError where there is none."""
    module, _, name = path.rpartition(".")
    try:
        with contained():
            found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        more = ": pip install flwr-datasets (in an environment of its own)" if e.name == "flwr_datasets" else ""
        raise ConfigError(f"federation.partition.partitioner: {path!r}: {e}{more}") from None
    except Exception as e:
        raise ConfigError(f"federation.partition.partitioner: {path!r} cannot be imported: {describe(e)}") from None
    if not callable(found) or not hasattr(found, "load_partition"):
        raise ConfigError(
            f"federation.partition.partitioner: {path!r} has no load_partition; allowed: a partitioner's class"
        )
    return found
