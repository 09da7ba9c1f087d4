"""Partition kind natural."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rayfed import partition
from tests.unit.partition import blobs
from tests.unit.partition.tables import DATA, HOLD, KINDS, N_TRAIN, conf, parts, table


def test_natural_clients_are_drawn_from_those_with_enough_examples() -> None:
    clients = np.repeat(["a", "b", "c", "d", ""], [10, 3, 2, 7, 9])
    d = table(np.arange(31) % 3, clients=clients)
    f = partition.build(conf(clients=3, partition={"kind": "natural", "min_examples": 3}, split={"test": 0}), d)
    assert sorted(f.names) == ["a", "b", "d"]
    assert {n: f.train[i].tolist() for i, n in enumerate(f.names)} == {
        "a": list(range(10)), "b": [10, 11, 12], "d": list(range(15, 22))
    }  # fmt: skip
    drawn = {frozenset(partition.build(conf(s, clients=2, partition="natural"), d).names) for s in range(20)}
    assert len(drawn) == 6  # any two of the four with two examples


def test_clients_without_training_rows_are_the_held_out_ones() -> None:
    c = conf(clients=10, partition=KINDS["natural"], holdout=HOLD, split={"val": 0.2, "test": 0.5})
    f = partition.build(c, DATA)
    assert f.population == 8 and set(f.names[8:]) <= {"q0", "q1", "q2"} and len(set(f.names)) == 10
    for k in (8, 9):
        mine = N_TRAIN + np.flatnonzero(DATA.test.client == f.names[k])
        assert sorted(np.concatenate([i[k] for i in parts(f)])) == mine.tolist()
        n = len(mine)
        assert [len(i[k]) for i in (f.val, f.test)] == [np.rint(0.2 * n), np.rint(0.5 * n)]
    assert set(DATA.test.split[f.pooled_test - N_TRAIN]) == {"test"}  # an unseen client's rows are its own


def test_held_out_natural_clients_are_drawn_where_no_others_exist() -> None:
    d = table(np.arange(60) % 3, clients=np.repeat(list("abcdef"), 10))
    f = partition.build(conf(clients=6, partition="natural", holdout={"kind": "clients", "fraction": 0.34}), d)
    assert (f.population, f.clients) == (4, 6) and sorted(f.names) == list("abcdef")
    assert f.train.sizes().min() >= 1


def test_natural_clients_are_grouped_by_their_main_domain() -> None:
    d = replace(
        blobs.DOMAINS,
        train=replace(blobs.DOMAINS.train, client=np.char.mod("c%d", np.arange(blobs.N) // 30)),
    )
    f = partition.build(blobs.conf(clients=8, partition={"kind": "natural"}, groups={"kind": "domain"}), d)
    for k, name in enumerate(f.names):
        mine = np.flatnonzero(d.train.client == name)
        main = max(["cam", "lab", "web"], key=lambda n: (d.train.domain[mine] == n).sum())
        assert ["cam", "lab", "web"][f.group[k]] == main
        assert f.train[k].tolist() == mine[d.train.domain[mine] == main].tolist()
