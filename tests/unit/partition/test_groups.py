"""Planted groups."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayfed import partition
from rayfed.errors import ConfigError
from rayfed.partition import groups
from tests.unit.partition import blobs
from tests.unit.partition.tables import CLASSES, DATA, GROUPS, HOLD, KINDS, N_TRAIN, conf, images, parts, table


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


def test_groups_of_unequal_size_have_rows_in_proportion() -> None:
    """80, 15 and 5 % of 40 clients, held-out ones too; of a class that two groups hold rows go by their clients."""
    own = {"kind": "classes", "count": 3, "shares": [80, 15, 5], "sets": [[0, 1], [1, 2], [3]]}
    f = partition.build(conf(clients=40, groups=own, split={"test": 0}), DATA)
    assert np.bincount(f.group).tolist() == [32, 6, 2]
    first, second, third = (f.class_counts[f.group == g].sum(0) for g in range(3))
    every = np.bincount(DATA.train.y, minlength=CLASSES)
    assert first[1] == 32 * every[1] // 38 and first[1] + second[1] == every[1] and third[3] == every[3]
    held = {"kind": "clients", "fraction": 0.5}
    f = partition.build(conf(clients=40, groups={**own, "sets": None}, holdout=held), DATA)
    assert np.bincount(f.group).tolist() == [32, 6, 2] and np.bincount(f.group[:20]).tolist() == [16, 3, 1]
    with pytest.raises(ValueError, match=r"shares.*one number above 0 per group \(3\)"):
        conf(clients=40, groups={**own, "shares": [1, 2]})


def test_groups_of_held_out_clients_go_on_with_the_count() -> None:
    g = SimpleNamespace(kind="rotation", count=3, shares=None)
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


def test_groups_by_domain_are_the_domains() -> None:
    for kind in ({"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.3}, {"kind": "quantity", "alpha": 1}):
        f = partition.build(blobs.conf(3, partition=kind, groups={"kind": "domain"}, holdout=blobs.HOLD), blobs.DOMAINS)
        counts = blobs.domain_counts(f, blobs.DOMAINS)
        assert np.array_equal(counts.argmax(1), f.group) and ((counts > 0).sum(1) == 1).all()
        assert set(f.group[:8]) == {0, 1, 2}
        asked = blobs.DOMAINS.test.domain[f.pooled_test - blobs.N]
        assert (
            set(asked) == {"cam", "lab"}
            and len(f.pooled_test) == np.isin(blobs.DOMAINS.test.domain, ["cam", "lab"]).sum()
        )
        assert np.array_equal(f.arrays["x"][: blobs.N], blobs.DOMAINS.train.x)  # nothing is transformed


@pytest.mark.parametrize(("rows", "n"), [([50, 30, 20], 10), ([97, 2, 1], 7), ([5, 5], 9), ([1000, 10, 1], 40)])
def test_spread_gives_each_domain_one_and_every_beginning_in_proportion(rows: list[int], n: int) -> None:
    d = groups.spread(np.array(rows), n)
    assert len(d) == n and set(d[: len(rows)]) == set(range(len(rows)))
    seats = [1] * len(rows)  # Huntington and Hill, by hand
    for _ in range(n - len(rows)):
        seats[max(range(len(rows)), key=lambda k: rows[k] / (seats[k] * (seats[k] + 1)) ** 0.5)] += 1
    assert np.bincount(d).tolist() == seats
