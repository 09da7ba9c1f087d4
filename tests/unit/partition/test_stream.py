"""Streams of tasks: which rows of which task are whose in each round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import partition
from rayfed.data import Dataset
from rayfed.execute.batches import BatchSampler
from rayfed.partition import Federation
from rayfed.partition.stream import problems as problems_of
from tests import toy
from tests.configs import problems, refusal
from tests.unit.partition.tables import DATA, conf, table

ROWS = len(DATA.train.y) + len(DATA.test.y)
SPLITS = ("train", "val", "test")


def stream(kind: str, data: Dataset = DATA, /, **settings: Any) -> Federation:
    split = {"val": 0.2, "test": 0.25}
    return partition.build(conf(clients=6, split=split, stream={"kind": kind, "every": 2, **settings}), data)


def held(f: Federation, split: str, client: int) -> tuple[np.ndarray, np.ndarray]:
    rows = getattr(f, split)[client]
    return f.arrays["x"][rows], f.arrays["y"][rows]


def test_rounds_have_their_task() -> None:
    f = stream("permuted", tasks=3)
    assert [f.stage_of(r) for r in (0, 1, 2, 3, 4, 5, 6, 7, 99)] == [1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert f.at(3) is f.stage(2) and f.at(3).at(9) is f.at(3)  # what a stage makes of it is no stream itself
    plain = partition.build(conf(clients=6), DATA)
    assert plain.at(9) is plain and plain.stage_of(9) == 1
    c = conf(clients=6, stream={"kind": "permuted", "every": 4, "tasks": 2}).model_copy(update={"rounds": 14})
    assert [r for r in range(1, 15) if c.is_evaluated(r)] == [4, 5, 8, 10, 14]


def test_permuted_inputs_are_the_same_pixels_elsewhere() -> None:
    f = stream("permuted", tasks=3)
    assert len(f.arrays["x"]) == 3 * ROWS
    moved = []
    for k in (1, 2, 3):
        for split in SPLITS:
            for c in range(6):
                (x, y), (first, labels) = held(f.stage(k), split, c), held(f.stage(1), split, c)
                assert np.array_equal(y, labels) and np.array_equal(
                    np.sort(x.reshape(len(x), -1)), first.reshape(len(x), -1)
                )
        pooled = f.arrays["x"][f.stage(k).pooled_test].reshape(-1, 4)
        order = np.argsort(pooled[0])
        assert np.array_equal(
            pooled[:, order], f.arrays["x"][f.pooled_test].reshape(-1, 4)
        )  # one permutation for all rows
        moved.append(tuple(order))
    assert moved[0] == (0, 1, 2, 3) and len(set(moved)) > 1


def test_classes_come_in_runs() -> None:
    f = stream("classes", tasks=2)
    assert len(f.arrays["x"]) == ROWS
    whole = partition.build(conf(clients=6, split={"val": 0.2, "test": 0.25}), DATA)
    for k, mine in ((1, [0, 1, 2]), (2, [3, 4])):
        s = f.stage(k)
        for split in SPLITS:
            for c in range(6):
                rows = getattr(whole, split)[c]
                assert getattr(s, split)[c].tolist() == rows[np.isin(whole.arrays["y"][rows], mine)].tolist()
        assert set(f.arrays["y"][s.pooled_test]) == set(mine)
        assert s.class_counts[:, mine].sum() == len(s.train.rows) == s.class_counts.sum()


def test_labels_drift_client_by_client() -> None:
    f = stream("drift", tasks=3, share=0.5)
    group = np.stack([f.stage(k).group for k in (1, 2, 3)])
    assert (
        (group[0] == 0).all()
        and (np.diff(group, axis=0).sum(1) == 3).all()
        and np.isin(np.diff(group, axis=0), (0, 1)).all()
    )
    table_of: dict[int, dict[int, int]] = {}
    for k in (1, 2, 3):
        for c in range(6):
            (x, y), (first, labels) = held(f.stage(k), "train", c), held(f.stage(1), "train", c)
            assert np.array_equal(x, first)
            for a, b in zip(labels.tolist(), y.tolist(), strict=True):
                assert table_of.setdefault(int(group[k - 1, c]), {}).setdefault(a, b) == b
            assert np.array_equal(np.bincount(y, minlength=5), f.stage(k).class_counts[c])
    assert table_of[0] == {c: c for c in range(5)} and table_of[1] != table_of[0] != table_of[2] != table_of[1]
    assert all(sorted(t.values()) == list(range(5)) for t in table_of.values())
    everyone = stream("drift", tasks=3)
    assert [set(everyone.stage(k).group) for k in (1, 2, 3)] == [{0}, {1}, {2}]


@pytest.mark.parametrize("kind", ["permuted", "classes", "drift"])
def test_it_travels_as_arrays(kind: str) -> None:
    f = stream(kind, tasks=2)
    other = Federation.from_numpy(f.numpy())
    assert other.digest() == f.digest() != replace(f, every=3).digest()
    assert other.stage(2).train.rows.tolist() == f.stage(2).train.rows.tolist() and other.every == 2
    assert f.numpy()["train/rows"].tolist() == f.stage(1).train.rows.tolist()


def test_a_visit_is_drawn_from_the_rounds_task() -> None:
    f = stream("classes", tasks=2)
    sampler = BatchSampler(f, seed=1, batch_size=4, device="cpu", dtype=torch.float32)
    for r, k in ((2, 1), (3, 2)):
        assert sampler.rows(0, "train", r).tolist() == f.stage(k).train[0].tolist()
        assert (
            np.concatenate([sampler.rows(0, f"pooled {i}", r) for i in range(1)]).tolist()
            == f.stage(k).pooled_test.tolist()
        )
    assert sampler.rows(2, "test 1", 3).tolist() == f.stage(1).test[2].tolist()


def test_clients_without_rows_of_a_task_are_not_there() -> None:
    changes = {
        "groups": {"kind": "none"},
        "stream": {"kind": "classes", "every": 1, "tasks": 4},
        "partition": {"kind": "shards", "per_client": 1},
    }
    done = toy.simulate("fedavg", executor="vmap", rounds=4, federation=changes)
    for draw in done.fed.drawn:
        rows = done.fed.whole.at(draw.round).train
        assert 0 < len(draw.ids) <= 7 and all(len(rows[c]) for c in draw.ids)
    assert 0 < len(done.fed.available()) < 12 and int((done.fed.chances() > 0).sum()) == len(done.fed.available())


def test_what_cannot_be_a_stream_is_refused() -> None:
    assert "nothing reads it with kind: none" in problems(federation={"stream": {"tasks": 3}})[0]
    assert (
        "nothing reads it with kind: permuted" in problems(federation={"stream": {"kind": "permuted", "share": 0.5}})[0]
    )
    assert "tasks: 9 found, allowed: at most 5 (the 5 classes)" in refusal(stream, "classes", tasks=9)
    assert "at most 2 (the permutations of 2 classes)" in refusal(stream, "drift", table([0, 1] * 30), tasks=3)
    both = conf(clients=6, groups={"kind": "rotation", "count": 2}, stream={"kind": "drift"})
    assert "drift found beside planted groups" in refusal(partition.build, both, DATA)
    texts = replace(partition.build(conf(clients=6), DATA), kind="text")
    asked = conf(stream={"kind": "permuted"}).federation.stream
    assert "permuted found, marked is text" in problems_of(texts, asked, "marked")[0]
    held_out = {"kind": "clients", "fraction": 0.5}
    alone = conf(clients=2, holdout=held_out, partition="shards", stream={"kind": "classes", "tasks": 2})
    alone = alone.model_copy(update={"seed": 1})
    assert "nobody has a training row of task 2" in refusal(
        partition.build, alone, table([0, 0, 0, 0, 0, 0, 1], test=2)
    )
