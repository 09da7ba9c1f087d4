"""What every split keeps to: rows, clients, seeds, groups; what is refused; cost."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayfed
from rayfed import data, partition
from rayfed.config.schema import Config, Named
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import Federation, Index, groups, top_up
from tests import toy
from tests.unit.partition.tables import (
    CLASSES,
    DATA,
    GROUPS,
    HOLD,
    KINDS,
    N_TEST,
    N_TRAIN,
    conf,
    images,
    parts,
    table,
)


def bits(f: Federation) -> dict[str, Any]:
    flat = f.numpy()
    return {k: v if k == "meta" else (v.dtype.str, v.shape, v.tobytes()) for k, v in flat.items()}


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
            "18 natural clients asked for in addition to 2 unseen ones, marked has 12",
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


def test_far_more_clients_than_rows_take_no_memory() -> None:
    c = conf(0, clients=10**12, partition=KINDS["iid"], groups=GROUPS["none"])
    with pytest.raises(
        ConfigError, match=r"federation.clients: 1,000,000,000,000 found, allowed: at most the \d+ rows of"
    ):
        partition.build(c, DATA)


def test_validation_rows_are_scored_in_the_place_of_test_rows() -> None:
    federation = {
        "clients": 6,
        "per_round": 4,
        "split": {"val": 0.25, "test": 0.25},
        "holdout": {"kind": "clients", "fraction": 0.34},
    }
    plain, chosen = (
        partition.build(toy.config("fedavg", federation=federation, evaluate={"split": split}))
        for split in ("test", "val")
    )
    assert [list(chosen.train[c]) for c in range(6)] == [list(plain.train[c]) for c in range(6)]
    assert [list(chosen.test[c]) for c in range(6)] == [list(plain.val[c]) for c in range(6)]
    taking_part = [row for c in range(plain.population) for row in plain.val[c]]
    assert plain.population == 4 and list(chosen.pooled_test) == sorted(taking_part)
    assert not set(chosen.pooled_test) & {*plain.test.rows, *plain.pooled_test, *plain.train.rows}
    with pytest.raises(ConfigError, match=r"evaluate.split: val found, .* federation.split.val gives them a share"):
        partition.build(toy.config("fedavg", federation={"split": {"val": 0.0}}, evaluate={"split": "val"}))


@pytest.mark.parametrize("planted", ["none", "rotation"])
@pytest.mark.parametrize("held", [0, 2])
def test_a_shift_at_test_time_gives_each_client_the_tests_of_another(planted: str, held: int) -> None:
    more = {"holdout": HOLD} if held else {}
    own, others = (
        partition.build(conf(1, clients=10, groups=GROUPS[planted], split={"test": 0.25, "tests": t}, **more), DATA)
        for t in ("own", "others")
    )
    n = 10 - held
    giver = {own.test[k].tobytes(): k for k in range(10)}
    given = [giver[others.test[k].tobytes()] for k in range(10)]
    assert sorted(given) == list(range(10)) and given[n:] == list(range(n, 10))
    assert all(a != b for a, b in enumerate(given[:n]))
    if planted != "none":
        assert (own.group[given[:n]] != own.group[:n]).all()
    assert bits(replace(others, test=own.test)) == bits(own)
