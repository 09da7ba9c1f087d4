"""Partitioners of flwr_datasets, by a stand-in with their interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import partition
from tests.configs import refusal
from tests.unit.partition.tables import conf, table

Y = np.repeat(np.arange(5), 24)


class ByLabel:
    """Deals rows sorted by a column in even pieces, as flwr_datasets' partitioners are used: a property `dataset`, `load_partition`."""

    def __init__(self, num_partitions: int, partition_by: str = "label", seed: int = 42, fail: str = "", drop: int = 0):
        self.num_partitions, self.by, self.seed, self.fail, self.drop = num_partitions, partition_by, seed, fail, drop
        self.dataset: Any = None

    def load_partition(self, partition_id: int) -> Any:
        if self.fail:
            raise ValueError(self.fail)
        order = np.lexsort((np.random.default_rng(self.seed).random(len(self.dataset)), self.dataset[self.by][:]))
        return self.dataset.select(np.array_split(order[self.drop :], self.num_partitions)[partition_id])


class ByClient:
    """Takes no number of partitions: as many as there are values."""

    def __init__(self, partition_by: str):
        self.by, self.dataset = partition_by, None

    @property
    def num_partitions(self) -> int:
        return len({*self.dataset[self.by]})  # type: ignore[index]

    def load_partition(self, partition_id: int) -> Any:
        values = np.array(self.dataset[self.by][:])  # type: ignore[index]
        return self.dataset.select(np.flatnonzero(values == sorted({*values})[partition_id]))  # type: ignore[attr-defined]


def chosen(cls: type, **options: Any) -> dict[str, Any]:
    return {"kind": "flwr", "partitioner": f"{__name__}.{cls.__name__}", "options": options}


def test_a_partition_is_a_client() -> None:
    f = partition.build(conf(clients=10, partition=chosen(ByLabel), split={"test": 0}), table(Y))
    assert f.train.sizes().tolist() == [12] * 10 and ((f.class_counts > 0).sum(1) == 1).all()
    again = partition.build(conf(clients=10, partition=chosen(ByLabel), split={"test": 0}), table(Y))
    other = partition.build(conf(1, clients=10, partition=chosen(ByLabel), split={"test": 0}), table(Y))
    assert np.array_equal(f.train.rows, again.train.rows) and not np.array_equal(f.train.rows, other.train.rows)


def test_rows_that_it_leaves_out_are_nobodys_and_groups_are_dealt_apart() -> None:
    f = partition.build(conf(clients=10, partition=chosen(ByLabel, drop=20), split={"test": 0}), table(Y))
    assert len(f.train.rows) == 100
    groups = {"kind": "classes", "count": 2, "sets": [[0, 1], [2, 3, 4]]}
    f = partition.build(conf(clients=10, partition=chosen(ByLabel), groups=groups, split={"test": 0}), table(Y))
    held = [{*np.flatnonzero(n)} for n in f.class_counts]
    assert all(h <= {*groups["sets"][g]} for h, g in zip(held, f.group, strict=True))  # type: ignore[index]


def test_natural_ids_by_a_partitioner() -> None:
    ids = np.array([f"c{i % 6}" for i in range(len(Y))])
    f = partition.build(
        conf(clients=6, partition=chosen(ByClient, partition_by="client"), split={"test": 0}), table(Y, clients=ids)
    )
    assert all({*ids[f.train[c]]} == {f"c{c}"} for c in range(6))
    said = refusal(
        partition.build, conf(clients=5, partition=chosen(ByClient, partition_by="client")), table(Y, clients=ids)
    )
    assert said == "federation.clients: 5 found, ByClient makes 6 partitions; allowed: 6"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"partitioner": "flwr_datasets.partitioner.IidPartitioner"},
            "pip install flwr-datasets (in an environment of its own)",
        ),
        ({"partitioner": "no_such_package.X"}, "No module named 'no_such_package'"),
        ({"partitioner": "collections.OrderedDict"}, "has no load_partition"),
        ({"partitioner": f"{__name__}.ByLabel", "options": {"fail": "too small"}}, "raised ValueError: too small"),
        ({"partitioner": f"{__name__}.ByLabel", "options": {"alpha": 1}}, "unexpected keyword argument 'alpha'"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], says: str) -> None:
    if given["partitioner"].startswith("flwr_datasets"):
        try:
            import flwr_datasets  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("flwr_datasets is installed here")
    said = refusal(partition.build, conf(clients=4, partition={"kind": "flwr", **given}), table(Y))
    assert said.startswith("federation.partition") and says in said
