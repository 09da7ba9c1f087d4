"""Who holds what: every kind of partition under every kind of planted groups, by invariants and by hand."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rayfed
from rayfed import data, keys, partition
from rayfed.config.schema import Config, Named
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import Federation, Index, groups, top_up
from rayfed.partition.dirichlet import split as split_by_dirichlet
from tests import toy

CLASSES = 5


def conf(seed: int = 0, /, **f: Any) -> Config:
    for k in ("partition", "groups"):
        if isinstance(f.get(k), str):
            f[k] = {"kind": f[k]}
    task = {"data": "digits", "model": "linear"}  # `build` is given its data, so the name does not matter
    return Config.from_dict({"seed": seed, "task": task, "method": "fedavg", "federation": f})


def marked(n: int, first: int = 0) -> np.ndarray:
    """Images (n, 1, 2, 2) whose pixels tell the row and the corner."""
    return (np.arange(n * 4, dtype=np.float32) + 4 * first).reshape(n, 1, 2, 2)


def images(train: int = 300, test: int = 80, classes: int = CLASSES) -> Dataset:
    """Marked images with random labels, 12 natural clients in both parts and three more whose rows are all test rows."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, classes, train + test)
    owner = np.sort(rng.choice([f"p{i:02d}" for i in range(12)], train, p=np.arange(3, 15) / 102))
    known = np.unique(owner)
    second = np.where(np.arange(test) < test // 2, rng.choice(known, test), rng.choice(["q0", "q1", "q2"], test))
    split = np.where(np.char.startswith(second, "q"), "test_unseen", "test")
    a = Part(marked(train), y[:train], owner, None, np.where(rng.random(train) < 0.1, "valid", "train"))
    b = Part(marked(test, train), y[train:], second, None, split)
    return Dataset("marked", a, b, classes, tuple(map(str, range(classes))), "image")


def table(y: Any, classes: int | None = None, test: int = 0, clients: Any = None) -> Dataset:
    """One feature, the row's number; natural clients where they are given."""
    y = np.asarray(y, np.int64)
    c = classes or int(y.max()) + 1
    x = np.arange(len(y) + test, dtype=np.float32)[:, None]
    a = Part(x[: len(y)], y, None if clients is None else np.asarray(clients))
    return Dataset("table", a, Part(x[len(y) :], np.arange(test) % c), c, tuple(map(str, range(c))), "tabular")


DATA = images()
N_TRAIN, N_TEST = len(DATA.train.y), len(DATA.test.y)
KINDS: dict[str, dict[str, Any]] = {
    "iid": {"kind": "iid", "min_examples": 3},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.3, "min_examples": 4},
    "shards": {"kind": "shards", "per_client": 2},
    "natural": {"kind": "natural", "min_examples": 5},
}
GROUPS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "rotation": {"kind": "rotation", "count": 3},
    "label_permutation": {"kind": "label_permutation", "count": 3},
    "classes": {"kind": "classes", "count": 2},
}
HOLD = {"kind": "clients", "fraction": 0.2}


def parts(f: Federation) -> list[Index]:
    return [f.train, f.val, f.test]


def bits(f: Federation) -> dict[str, Any]:
    flat = f.numpy()
    return {k: v if k == "meta" else (v.dtype.str, v.shape, v.tobytes()) for k, v in flat.items()}


# -- every kind under every kind of groups -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("held", [0, 2])
@pytest.mark.parametrize("planted", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_used_once_and_clients_are_as_asked(kind: str, planted: str, held: int, seed: int) -> None:
    clients = 10
    more = {"holdout": HOLD} if held else {}
    split = {"val": 0.2, "test": 0.25}
    c = conf(seed, clients=clients, partition=KINDS[kind], groups=GROUPS[planted], split=split, **more)
    f = partition.build(c, DATA)
    assert (f.clients, f.population, len(f.names)) == (clients, clients - held, clients)
    assert [len(i) for i in parts(f)] == [clients] * 3
    every = np.concatenate([i.rows for i in parts(f)])
    assert len(np.unique(every)) == len(every)  # no row twice, in no client and no split
    for i in parts(f):
        assert all((np.diff(i[k]) > 0).all() for k in range(clients)) and i.rows.dtype == np.int64
    owner = np.concatenate([i.owners() for i in parts(f)])
    raw_y = np.concatenate([DATA.train.y, DATA.test.y])
    holds = groups.holds(c.federation.groups, CLASSES) if planted == "classes" else None

    if kind == "natural":
        ids = np.concatenate([DATA.train.client, DATA.test.client])
        drawn = {n: i for i, n in enumerate(f.names)}
        mine = np.array([drawn.get(n, -1) for n in ids])
        if holds is not None:
            mine[~holds[f.group[mine], raw_y]] = -1
        assert dict(zip(every.tolist(), owner.tolist())) == {r: k for r, k in enumerate(mine.tolist()) if k >= 0}
        assert all(n.startswith("q" if i >= clients - held else "p") for i, n in enumerate(f.names))
        assert np.array_equal(f.pooled_test, N_TRAIN + np.flatnonzero(DATA.test.split == "test"))
    else:
        assert np.array_equal(np.sort(every), np.arange(N_TRAIN))
        assert np.array_equal(f.pooled_test, N_TRAIN + np.arange(N_TEST))
        assert f.names == tuple(map(str, range(clients)))
    if holds is not None:
        assert holds[f.group[owner], raw_y[every]].all()
    if "min_examples" in KINDS[kind] and holds is None:
        assert np.bincount(owner, minlength=clients).min() >= KINDS[kind]["min_examples"]
    assert f.train.sizes().min() >= 1

    y = f.arrays["y"]
    by_hand = [np.bincount(y[f.train[k]], minlength=CLASSES) for k in range(clients)]
    assert f.class_counts.tolist() == np.array(by_hand).tolist()
    if planted == "none":
        assert f.group.tolist() == [-1] * clients
    else:
        count = GROUPS[planted]["count"]
        for some in (f.group[: clients - held], f.group):
            assert np.ptp(np.bincount(some, minlength=count)) <= 1
        assert set(f.group[clients - held :]) <= set(f.group[: clients - held]) == set(range(count))
    if planted in ("none", "classes"):
        assert np.array_equal(f.arrays["x"], np.concatenate([DATA.train.x, DATA.test.x]))
        assert np.array_equal(y, raw_y)


@pytest.mark.parametrize("planted", GROUPS)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_seed_the_federation_and_the_data_decide(kind: str, planted: str) -> None:
    c = conf(3, clients=8, partition=KINDS[kind], groups=GROUPS[planted], holdout=HOLD)
    first = bits(partition.build(c, DATA))
    raw = c.to_dict()
    other = {
        **raw, "name": "other", "rounds": 99, "method": {"name": "ifca", "clusters": 2},
        "local": {"epochs": 5, "batch_size": 3, "optimizer": {"name": "adam"}}, "evaluate": {"every": 2},
        "resources": {"actors": 3, "executor": "vmap"}, "task": {**raw["task"], "model": "mlp", "dtype": "float64"},
    }  # fmt: skip
    np.random.seed(11)
    np.random.random(5)
    assert bits(partition.build(Config.from_dict(other), images())) == first
    again = partition.build(conf(4, clients=8, partition=KINDS[kind], groups=GROUPS[planted], holdout=HOLD), DATA)
    assert bits(again)["train/rows"] != first["train/rows"]


def test_arms_of_a_study_share_their_split_and_seeds_do_not() -> None:
    from rayfed.config.load import load_config
    from rayfed.config.schema import Study

    raw = {**toy.TOY, "seeds": [1, 2], "method": {"name": "fedavg"}}
    raw["arms"] = {"a": {}, "b": {"method": {"name": "ifca", "clusters": 2}, "rounds": 9}}
    study = load_config({k: v for k, v in raw.items() if k != "seed"})
    assert isinstance(study, Study)
    made = {(arm, seed): bits(partition.build(c)) for arm, seed, c in study.runs()}
    assert made["a", 1] == made["b", 1] and made["a", 2] == made["b", 2]
    assert made["a", 1]["train/rows"] != made["a", 2]["train/rows"]


def test_the_callers_data_is_not_written_to() -> None:
    before = DATA.train.x.copy(), DATA.train.y.copy()
    for planted in ("rotation", "label_permutation"):
        partition.build(conf(clients=6, groups=GROUPS[planted]), DATA)
    assert np.array_equal(DATA.train.x, before[0]) and np.array_equal(DATA.train.y, before[1])


# -- client splits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "val", "test", "by_hand"),
    [
        (20, 0.0, 0.25, (15, 0, 5)),
        (20, 0.2, 0.25, (11, 4, 5)),
        (7, 0.2, 0.25, (4, 1, 2)),  # 1.75 and 1.4
        (10, 0.3, 0.6, (1, 3, 6)),
        (3, 0.4, 0.5, (1, 0, 2)),  # 1.5 is 2, then 1.2 would leave nothing to train on
        (1, 0.4, 0.5, (1, 0, 0)),
        (8, 0.0, 0.0, (8, 0, 0)),
    ],
)
def test_shares_are_rounded_and_leave_one_to_train_on(
    size: int, val: float, test: float, by_hand: tuple[int, int, int]
) -> None:
    c = conf(clients=3, partition={"kind": "iid", "min_examples": 1}, split={"val": val, "test": test})
    f = partition.build(c, table(np.arange(3 * size) % 2, 2))
    assert [tuple(i.sizes()[k] for i in parts(f)) for k in range(3)] == [by_hand] * 3


def test_natural_clients_own_valid_and_test_rows_are_used_as_such() -> None:
    owner = np.repeat(["a", "b", "c"], 10)
    role = np.array((["train"] * 8 + ["valid"] * 2) * 2 + ["train"] * 10)
    x = np.arange(34, dtype=np.float32)[:, None]
    y = np.arange(34) % 2
    d = Dataset(
        "n", Part(x[:30], y[:30], owner, None, role),
        Part(x[30:], y[30:], np.array(["a", "a", "c", "z"]), None, np.array(["test", "test", "test", "test"])), 2,
        ("0", "1"), "tabular",
    )  # fmt: skip
    f = partition.build(conf(clients=3, partition="natural", split={"val": 0.3, "test": 0.25}), d)
    a, b, c = (f.names.index(n) for n in "abc")
    assert [i[a].tolist() for i in parts(f)] == [list(range(8)), [8, 9], [30, 31]]
    assert f.val[b].tolist() == [18, 19] and len(f.test[b]) == 2 and len(f.train[b]) == 6  # a quarter of its 8
    assert f.test[c].tolist() == [32] and len(f.val[c]) == 3 and len(f.train[c]) == 7  # 0.3 of its 10
    assert f.pooled_test.tolist() == [30, 31, 32, 33]


# -- iid ---------------------------------------------------------------------------------------------------------------


def test_iid_sizes_differ_by_at_most_one() -> None:
    f = partition.build(conf(clients=7, split={"test": 0}), table(np.arange(200) % 4))
    assert sorted(f.train.sizes()) == [28] * 3 + [29] * 4
    f = partition.build(conf(clients=7, groups=GROUPS["rotation"], split={"test": 0}), images(200))
    for g in range(3):
        assert np.ptp(f.train.sizes()[f.group == g]) <= 1


def test_iid_mixes_the_rows() -> None:
    f = partition.build(conf(clients=4, split={"test": 0}), table(np.repeat(np.arange(4), 250)))
    assert np.abs(f.class_counts - 62.5).max() < 30  # the rows are sorted by class: cutting them would give 0 and 250


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("per_client", [1, 2, 4])
def test_shards_that_fit_into_classes_hold_one_class_each(per_client: int, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 40))
    c = conf(seed, clients=20, partition={"kind": "shards", "per_client": per_client}, split={"test": 0})
    f = partition.build(c, table(y))
    assert f.train.sizes().tolist() == [20] * 20
    piece = 20 // per_client
    assert (f.class_counts % piece == 0).all()
    assert ((f.class_counts > 0).sum(1) <= per_client).all()
    if per_client > 1:
        assert (f.class_counts > 0).sum(1).max() == per_client


def test_uneven_shards_differ_by_at_most_one() -> None:
    """103 rows in 12 shards: eight or nine each, so that two make 16 to 18; each lies in at most two classes of 34."""
    y = np.arange(103) % 3
    f = partition.build(conf(clients=6, partition="shards", split={"test": 0}), table(y))
    assert f.train.sizes().sum() == 103 and set(f.train.sizes()) <= {16, 17, 18}
    f = partition.build(
        conf(clients=12, partition={"kind": "shards", "per_client": 1}, split={"test": 0}), table(y)
    )  # fmt: skip
    assert sorted(f.train.sizes()) == [8] * 5 + [9] * 7
    assert ((f.class_counts > 0).sum(1) <= 2).all()


# -- dirichlet ---------------------------------------------------------------------------------------------------------


def distance(counts: np.ndarray) -> float:
    """Mean Jensen-Shannon distance (base 2) over all pairs of clients."""
    p = counts / counts.sum(1, keepdims=True)

    def entropy(q: np.ndarray) -> np.ndarray:
        return -np.where(q > 0, q * np.log2(np.where(q > 0, q, 1)), 0).sum(-1)

    i, j = np.triu_indices(len(p), 1)
    js = entropy((p[i] + p[j]) / 2) - (entropy(p[i]) + entropy(p[j])) / 2
    return float(np.sqrt(np.maximum(js, 0)).mean())


def dirichlet(alpha: float, y: np.ndarray, seed: int = 0, clients: int = 10, least: int = 1) -> Federation:
    c = conf(
        seed, clients=clients, partition={"kind": "dirichlet", "alpha": alpha, "min_examples": least}, split={"test": 0}
    )
    return partition.build(c, table(y))


def test_small_alpha_skews_more_than_large_alpha() -> None:
    y = np.arange(2000) % 10
    by_alpha = [np.mean([distance(dirichlet(a, y, s).class_counts) for s in range(3)]) for a in (0.05, 0.5, 5.0, 500.0)]
    assert all(a > b + 0.05 for a, b in pairwise(by_alpha))
    assert by_alpha[0] > 0.7 and by_alpha[-1] < 0.1
    few, many = ((dirichlet(a, y).class_counts > 0).sum(1).mean() for a in (0.05, 500.0))
    assert few < 5 and many == 10


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_the_shares_of_a_class_have_the_spread_of_dirichlet(alpha: float) -> None:
    """Var p_i = (1/n)(1 - 1/n) / (n alpha + 1), here over 400 classes as independent draws."""
    n = 5
    share = dirichlet(alpha, np.repeat(np.arange(400), 50), clients=n).class_counts / 50
    assert share.mean(1) == pytest.approx(np.full(n, 0.2), abs=0.05)
    assert share.var() == pytest.approx(0.16 / (n * alpha + 1), rel=0.1)


class Fixed:
    """A generator whose draws are known."""

    def permutation(self, x: Any) -> np.ndarray:
        return np.arange(x) if isinstance(x, int) else np.asarray(x)

    def dirichlet(self, alpha: np.ndarray) -> np.ndarray:
        assert alpha.tolist() == [0.3] * 3
        return np.array([0.25, 0.5, 0.25])


def test_rows_of_a_class_are_cut_at_the_shares() -> None:
    """Of 8, 4 and 5 rows: 2 + 4 + 2, 1 + 2 + 1, and 1 + 3 + 1 (cuts at 1.25 and 3.75)."""
    c = conf(clients=3, partition={"kind": "dirichlet", "alpha": 0.3, "min_examples": 1})
    d = table(np.repeat([0, 1, 2], [8, 4, 5]))
    owned = split_by_dirichlet(c.federation, d, np.full(3, -1), 0, lambda purpose: Fixed())
    assert owned.client.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 0, 1, 1, 2, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_tiny_alpha_with_many_clients_still_gives_everyone_the_minimum(seed: int) -> None:
    f = dirichlet(0.001, np.arange(600) % 3, seed, clients=50, least=6)
    assert f.train.sizes().sum() == 600 and f.train.sizes().min() == 6
    assert (f.train.sizes() == 6).sum() >= 40  # hardly anybody got that many by the draw


@pytest.mark.parametrize(
    ("sizes", "least", "by_hand"),
    [
        ([5, 3, 0], 2, [3, 3, 2]),
        ([6, 0, 1, 5], 3, [3, 3, 3, 3]),
        ([9, 1, 9], 3, [8, 3, 8]),
        ([7, 6, 0, 3], 2, [6, 5, 2, 3]),
        ([4, 4, 4], 4, [4, 4, 4]),
        ([10, 0, 0, 0], 1, [7, 1, 1, 1]),
        ([1, 2, 3], 0, [1, 2, 3]),
    ],
)
def test_topping_up_by_hand(sizes: list[int], least: int, by_hand: list[int]) -> None:
    client = np.repeat(np.arange(len(sizes)), sizes)
    out = top_up(client, len(sizes), least, np.random.default_rng(0))
    assert np.bincount(out, minlength=len(sizes)).tolist() == by_hand
    lack = sum(max(least - s, 0) for s in sizes)
    assert (out != client).sum() == lack  # nobody else's row has moved
    assert np.bincount(client, minlength=len(sizes)).tolist() == sizes  # the argument is as it was


@pytest.mark.parametrize("seed", range(20))
def test_topping_up_equals_taking_from_the_largest_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, least = int(rng.integers(2, 9)), int(rng.integers(1, 6))
    client = rng.choice(n, n * least + int(rng.integers(0, 30)), p=rng.dirichlet(np.full(n, 0.4)))
    size = np.bincount(client, minlength=n)
    while (size < least).any():
        size[size.argmax()] -= 1
        size[np.flatnonzero(size < least)[0]] += 1
    out = top_up(client, n, least, rng)
    assert sorted(np.bincount(out, minlength=n)) == sorted(size)
    gave, got = (np.bincount(c[out != client], minlength=n) for c in (client, out))
    assert not (gave * got).any()  # a client gives or gets, never both


# -- natural -----------------------------------------------------------------------------------------------------------


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


# -- planted groups ----------------------------------------------------------------------------------------------------


def test_a_rotated_client_sees_its_images_turned_counterclockwise() -> None:
    """Row 0 is the image [[0, 1], [2, 3]]; a quarter turn makes it [[1, 3], [0, 2]]."""
    f = partition.build(conf(clients=8, groups={"kind": "rotation", "count": 4}), DATA)
    turned = [[[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]]]
    raw = np.concatenate([DATA.train.x, DATA.test.x])
    assert [np.rot90(raw[0], g, axes=(1, 2))[0].tolist() for g in range(4)] == turned
    for k in range(8):
        g = int(f.group[k])
        for i in parts(f):
            want = np.array(turned[g]) + 4 * i[k][:, None, None, None]
            assert np.array_equal(f.arrays["x"][i[k]], want)
    assert np.array_equal(f.arrays["y"], np.concatenate([DATA.train.y, DATA.test.y]))


def test_the_pooled_test_set_is_turned_in_the_groups_proportion() -> None:
    f = partition.build(conf(clients=9, groups={"kind": "rotation", "count": 4}, holdout=HOLD), DATA)
    raw = np.concatenate([DATA.train.x, DATA.test.x])[f.pooled_test]
    is_turned = np.stack(
        [(f.arrays["x"][f.pooled_test] == np.rot90(raw, g, axes=(2, 3))).all((1, 2, 3)) for g in range(4)]
    )
    assert (is_turned.sum(0) == 1).all()
    trained = f.train.sizes()[: f.population]
    exact = np.bincount(f.group[: f.population], weights=trained, minlength=4) / trained.sum() * len(f.pooled_test)
    assert np.abs(is_turned.sum(1) - exact).max() < 1 and is_turned.sum(1).min() > 10
    changes = np.count_nonzero(np.diff(is_turned.argmax(0)))
    assert changes > 20  # shuffled, not one group after the other


def test_own_test_rows_of_natural_clients_are_turned_as_their_client_is() -> None:
    f = partition.build(conf(clients=10, partition=KINDS["natural"], groups=GROUPS["rotation"]), DATA)
    raw = np.concatenate([DATA.train.x, DATA.test.x])
    seen = 0
    for k in range(10):
        rows = f.test[k][f.test[k] >= N_TRAIN]
        seen += len(rows)
        assert np.isin(rows, f.pooled_test).all()
        assert np.array_equal(f.arrays["x"][rows], np.rot90(raw[rows], f.group[k], axes=(2, 3)))
    assert seen > 20


@pytest.mark.parametrize(
    ("weights", "n", "by_hand"),
    [([1, 1], 4, [2, 2]), ([3, 1], 10, [8, 2]), ([5, 3, 2], 10, [5, 3, 2]), ([1, 1, 1], 4, [2, 1, 1]), ([2, 0], 3, [3, 0])],
)  # fmt: skip
def test_sharing_out_by_largest_remainders(weights: list[int], n: int, by_hand: list[int]) -> None:
    got = keys.proportional(np.array(weights, float), n, np.random.default_rng(0))
    assert np.bincount(got, minlength=len(weights)).tolist() == by_hand


@pytest.mark.parametrize(("classes", "count"), [(5, 4), (3, 6), (2, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_label_permutations_are_distinct_and_group_0_keeps_its_labels(classes: int, count: int, seed: int) -> None:
    d = images(train=400, test=200, classes=classes)
    f = partition.build(conf(seed, clients=2 * count, groups={"kind": "label_permutation", "count": count}), d)
    raw = np.concatenate([d.train.y, d.test.y])
    of_group = np.full((count, classes), -1)
    for i in parts(f):
        for k in range(f.clients):
            for old, new in zip(raw[i[k]], f.arrays["y"][i[k]]):
                assert of_group[f.group[k], old] in (-1, new)  # one map for the whole group
                of_group[f.group[k], old] = new
    assert of_group[0].tolist() == list(range(classes))
    assert len({tuple(t) for t in of_group.tolist()}) == count
    assert np.array_equal(np.sort(of_group, 1), np.tile(np.arange(classes), (count, 1)))
    pooled = {(int(a), int(b)) for a, b in zip(raw[f.pooled_test], f.arrays["y"][f.pooled_test])}
    allowed = {(c, int(t[c])) for t in of_group for c in range(classes)}
    assert pooled == allowed  # every group's map is in the pooled test set, and nothing else
    assert np.array_equal(f.arrays["x"], np.concatenate([d.train.x, d.test.x]))


def sets(count: int, classes: int) -> list[list[int]]:
    return groups.class_sets(SimpleNamespace(count=count, sets=None), classes)


def test_default_class_sets_by_hand() -> None:
    assert sets(1, 10) == [list(range(10))]
    assert sets(2, 10) == [[0, 1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 0, 1]]
    assert sets(3, 10) == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9, 0]]
    assert sets(5, 10) == [[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8], [8, 9, 0]]
    assert sets(10, 10) == [[c, (c + 1) % 10] for c in range(10)]
    assert sets(2, 3) == [[0, 1], [1, 2, 0]]


@pytest.mark.parametrize("classes", [3, 4, 7, 10, 62])
def test_default_class_sets_cover_all_classes_and_differ(classes: int) -> None:
    for count in range(1, classes + 1):
        got = sets(count, classes)
        assert set().union(*got) == set(range(classes))
        assert len({frozenset(s) for s in got}) == count
        assert all(len(set(s)) == len(s) for s in got)


def test_two_groups_of_two_classes_differ_or_are_refused() -> None:
    g = SimpleNamespace(kind="classes", count=2, sets=None)
    assert groups.problems(g, table([0, 1])) or set(sets(2, 2)[0]) != set(sets(2, 2)[1])


def test_own_class_sets_leave_other_classes_to_nobody() -> None:
    own = {"kind": "classes", "count": 2, "sets": [[0, 1], [1, 3]]}
    f = partition.build(conf(clients=6, groups=own, split={"test": 0}), DATA)
    every = [np.flatnonzero(DATA.train.y == c) for c in range(CLASSES)]
    assert np.array_equal(np.sort(f.train.rows), np.sort(np.concatenate([every[0], every[1], every[3]])))
    assert set(DATA.test.y[f.pooled_test - N_TRAIN]) == {0, 1, 3}
    first, second = (f.class_counts[f.group == g].sum(0) for g in (0, 1))
    assert first[[2, 3, 4]].tolist() == [0, 0, 0] and second[[0, 2, 4]].tolist() == [0, 0, 0]
    assert first[0] == len(every[0]) and second[3] == len(every[3])
    assert abs(first[1] - second[1]) <= 1 and first[1] + second[1] == len(every[1])  # a shared class is halved


def test_groups_of_held_out_clients_go_on_with_the_count() -> None:
    g = SimpleNamespace(kind="rotation", count=3)
    rng = np.random.default_rng(0)
    assert sorted(groups.assign(g, 7, 0, rng)) == [0, 0, 0, 1, 1, 2, 2]
    assert sorted(groups.assign(g, 2, 7, rng)) == [1, 2]
    assert groups.assign(SimpleNamespace(kind="none", count=1), 2, 0, rng).tolist() == [-1, -1]
    f = partition.build(conf(clients=9, groups=GROUPS["rotation"], holdout={"kind": "clients", "fraction": 0.1}), DATA)
    assert np.bincount(f.group[:8]).tolist() == [3, 3, 2] and f.group[8] == 2


@pytest.mark.parametrize(("clients", "more"), [(3, {}), (4, {"holdout": {"kind": "clients", "fraction": 0.2}})])
def test_every_group_has_a_client_that_trains_or_the_count_is_refused(clients: int, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"federation\.groups\.count"):
        partition.build(conf(clients=clients, groups={"kind": "rotation", "count": 4}, **more), DATA)


# -- what cannot be --------------------------------------------------------------------------------------------------

FLAT = table(np.arange(40) % 4, test=8)
NAMED = table(np.arange(40) % 4, clients=np.repeat(list("abcd"), [20, 10, 9, 1]))
WIDE = Dataset(
    "wide", Part(np.zeros((8, 1, 2, 3), np.float32), np.arange(8) % 2), Part(np.zeros((2, 1, 2, 3), np.float32), np.arange(2)),
    2, ("0", "1"), "image",
)  # fmt: skip


@pytest.mark.parametrize(
    ("d", "f", "says"),
    [
        (FLAT, {"clients": 21}, "federation.clients: 21 clients cannot get 2 examples each from 40 rows; allowed: at most 20"),
        (
            FLAT, {"clients": 9, "partition": {"kind": "dirichlet", "alpha": 1, "min_examples": 5}},
            "9 clients cannot get 5 examples each from 40 rows; allowed: at most 8, or a smaller partition.min_examples",
        ),
        (
            FLAT, {"clients": 12, "groups": {"kind": "classes", "count": 2, "sets": [[0], [1, 2, 3]]}},
            "6 clients of group 0 cannot get 2 examples each from 10 rows; allowed: at most 5 in it",
        ),
        (
            FLAT, {"clients": 10, "partition": {"kind": "shards", "per_client": 5}},
            "federation.partition.per_client: 10 clients with 5 shards each need 50 rows, there are 40; allowed: at most 4",
        ),
        (FLAT, {"clients": 41, "partition": "shards"}, "41 clients cannot get 1 examples each from 40 rows"),
        (FLAT, {"clients": 2, "partition": "natural"}, "natural found, but table has no client column"),
        (
            NAMED, {"clients": 4, "partition": "natural"},
            "federation.clients: 4 natural clients asked for, table has 3 with at least 2 training examples",
        ),
        (
            NAMED, {"clients": 4, "partition": "natural", "holdout": HOLD},
            "4 natural clients asked for (1 of them held out), table has 3",
        ),
        (
            DATA, {"clients": 12, "partition": "natural", "holdout": {"kind": "clients", "fraction": 0.5}},
            "federation.holdout.fraction: 6 held-out clients asked for, marked has 3 without training rows",
        ),
        (
            DATA, {"clients": 20, "partition": "natural", "holdout": {"kind": "clients", "fraction": 0.1}},
            "18 natural clients asked for beside 2 unseen ones, marked has 12",
        ),
        (
            table([0, 0, 0, 1, 1, 1], clients=list("aaabbb")),
            {"clients": 2, "partition": "natural", "groups": {"kind": "classes", "count": 2, "sets": [[0], [0]]}},
            "federation.clients: 1 of 2 clients (first: b) would hold no training example",
        ),
        (FLAT, {"clients": 4, "groups": {"kind": "rotation", "count": 2}}, "rotation needs images, table is tabular"),
        (WIDE, {"clients": 2, "groups": {"kind": "rotation", "count": 2}}, "needs square images, those of wide are 2x3"),
        (
            WIDE, {"clients": 4, "groups": {"kind": "label_permutation", "count": 3}},
            "federation.groups.count: 3 found, 2 classes have only 2 permutations",
        ),
        (FLAT, {"clients": 8, "groups": {"kind": "classes", "count": 5}}, "5 found, allowed for 4 classes: at most 4"),
        (
            FLAT, {"clients": 8, "groups": {"kind": "classes", "count": 2, "sets": [[0, 4], [1]]}},
            "federation.groups.sets: class 4 found, allowed: 0 to 3",
        ),
        (
            FLAT, {"clients": 8, "groups": {"kind": "classes", "count": 2, "sets": [[0, 0], [1]]}},
            "every set needs at least one class, and each only once",
        ),
        (FLAT, {"clients": 8, "groups": {"kind": "classes", "count": 2, "sets": [[], [1]]}}, "needs at least one class"),
    ],
)  # fmt: skip
def test_what_the_data_does_not_allow_is_a_sentence_with_what_it_does(d: Dataset, f: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        partition.build(conf(**f), d)
    assert str(e.value).startswith("federation.") and says in str(e.value)


def test_the_largest_allowed_number_of_clients_is_possible() -> None:
    assert partition.build(conf(clients=20), FLAT).train.sizes().tolist() == [2] * 20  # half a row to test is none
    f = partition.build(conf(clients=40, partition={"kind": "shards", "per_client": 1}), FLAT)
    assert f.train.sizes().tolist() == [1] * 40
    f = partition.build(conf(clients=8, partition={"kind": "dirichlet", "alpha": 1, "min_examples": 5}), FLAT)
    assert f.train.sizes().tolist() == [4] * 8


def test_a_single_rotation_needs_no_images() -> None:
    assert partition.build(conf(clients=4, groups={"kind": "rotation", "count": 1}), FLAT).group.tolist() == [0] * 4


def test_an_empty_pooled_test_set_is_allowed() -> None:
    f = partition.build(conf(clients=4, groups={"kind": "label_permutation", "count": 2}), table(np.arange(40) % 4))
    assert len(f.pooled_test) == 0 and f.train.sizes().tolist() == [8] * 4


# -- the object --------------------------------------------------------------------------------------------------------


def test_an_index_by_hand() -> None:
    i = Index.of(np.array([2, 0, 2, 0]), np.array([9, 8, 3, 4]), 4)
    assert i.offsets.tolist() == [0, 2, 2, 4, 4] and i.rows.tolist() == [4, 8, 3, 9]
    assert [i[k].tolist() for k in range(4)] == [[4, 8], [], [3, 9], []]
    assert (len(i), i.sizes().tolist(), i.owners().tolist()) == (4, [2, 0, 2, 0], [0, 0, 2, 2])
    for k in (-1, 4):
        with pytest.raises(IndexError, match=f"client {k} of 4"):
            i[k]


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_back_shares_every_array(kind: str) -> None:
    f = partition.build(conf(clients=8, partition=KINDS[kind], groups=GROUPS["rotation"], holdout=HOLD), DATA)
    flat = f.numpy()
    back = Federation.from_numpy(flat)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(f.arrays[n], back.arrays[n]) for n in ("x", "y")]
    for a, b in zip(parts(f), parts(back)):
        pairs += [(a.rows, b.rows), (a.offsets, b.offsets)]
    pairs += [(f.pooled_test, back.pooled_test), (f.group, back.group), (f.class_counts, back.class_counts)]
    assert all(np.shares_memory(a, b) for a, b in pairs if a.size)
    assert all(a is b for a, b in pairs)
    plain = ("population", "classes", "input_shape", "kind", "label_names", "names", "clients")
    assert [getattr(f, n) for n in plain] == [getattr(back, n) for n in plain]
    assert set(map(type, flat.values())) == {np.ndarray, dict}
    assert bits(back) == bits(f)


# -- scale -------------------------------------------------------------------------------------------------------------


def many(clients: int) -> Dataset:
    """20,000 rows, whatever the number of clients; the natural ones share them evenly."""
    spec = Named.model_validate({"name": "synthetic:blobs", "examples": 20_000, "test": 100, "features": 2})
    d = data.load(spec, 0)
    owner = np.char.mod("%d", np.arange(20_000) % clients)
    return replace(d, train=replace(d.train, client=owner))


OURS = str(Path(rayfed.__file__).parent) + os.sep

SCALE = {
    "iid": {"kind": "iid"},
    "dirichlet": {"kind": "dirichlet", "alpha": 0.3},
    "shards": {"kind": "shards", "per_client": 2},
    "natural": {"kind": "natural"},
}


def lines(call: Callable[[], Any]) -> Counter[tuple[str, int]]:
    """Counts how often a call runs each line of rayfed's own files."""
    count: Counter[tuple[str, int]] = Counter()

    def trace(frame: Any, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(OURS):
            return None
        if event == "line":
            count[file, frame.f_lineno] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("planted", ["none", "label_permutation"])
@pytest.mark.parametrize("kind", SCALE)
def test_no_line_is_run_once_per_client(kind: str, planted: str) -> None:
    clients = 4000
    d = many(clients)
    c = conf(clients=clients, partition=SCALE[kind], groups=GROUPS[planted])
    times = lines(lambda: partition.build(c, d))
    assert times and max(times.values()) < clients / 10  # Dirichlet's draws are repeated, a few dozen times


@pytest.mark.parametrize(("file", "seen"), [(OURS + "loop.py", True), (OURS + "../.venv/lib/loop.py", False)])
def test_lines_are_counted_in_our_own_files_alone(file: str, seen: bool) -> None:
    run = compile("for _ in range(50):\n    int()\n", os.path.normpath(file), "exec")
    assert (max(lines(lambda: exec(run)).values(), default=0) >= 50) is seen


@pytest.mark.parametrize("kind", SCALE)
def test_ten_times_the_clients_take_less_than_four_times_as_long(kind: str) -> None:
    by_clients = {n: many(n) for n in (400, 4000)}

    def once(clients: int) -> float:
        d, c = by_clients[clients], conf(clients=clients, partition=SCALE[kind])
        start = time.perf_counter()
        assert partition.build(c, d).clients == clients
        return time.perf_counter() - start

    once(400)
    few, most = (min(once(n) for _ in range(5)) for n in (400, 4000))
    assert most < 4 * few
