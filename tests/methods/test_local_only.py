"""Local-only: what a client learns is what it would learn alone, and nothing else exists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from tests import toy

ROUNDS = 3


@pytest.fixture(scope="module")
def done() -> toy.Result:
    return toy.simulate(
        "local_only",
        rounds=ROUNDS,
        executor="vmap",
        dtype="float64",
        task={"model": "linear"},
        local={"epochs": 3, "batch_size": 64},
    )


def rounds_of(done: toy.Result, client: int) -> int:
    return sum(client in d.ids for d in done.fed.drawn)


def test_a_client_trains_alone_through_the_rounds_it_skips(done: toy.Result, plain: Any) -> None:
    """NumPy: as many blocks of three full-batch steps as rounds it took part in, from the common start."""
    start = plain.vector(done.fed.task.initial)
    took = {c: rounds_of(done, c) for c in range(done.fed.population)}
    assert set(took.values()) >= {1, 2, 3}
    for c, times in took.items():
        if times:
            want = plain.descend(start, *plain.data(done.fed, c), steps=3 * times)
            np.testing.assert_allclose(plain.vector(done.clients()[str(c)]["model"]), want, atol=1e-13)
        else:
            assert str(c) not in done.clients()


def test_nothing_crosses_the_wire(done: toy.Result) -> None:
    assert done.state == done.initial == {}
    assert [(r["bytes/up"], r["bytes/down"], r["visits"]) for r in done.rows] == [(0, 0, 7)] * ROUNDS


def test_each_client_is_served_its_own_model(done: toy.Result, plain: Any) -> None:
    """NumPy scores on each client's test split; a held-out client, or one that never trained, has the common start."""
    start = plain.vector(done.fed.task.initial)
    _, clients = done.scores()
    assert [c["client"] for c in clients] == list(range(14)) and [c["unseen"] for c in clients[-2:]] == [True, True]
    for row in clients:
        c = row["client"]
        p = plain.descend(start, *plain.data(done.fed, c), steps=3 * (0 if row["unseen"] else rounds_of(done, c)))
        x, y = plain.data(done.fed, c, "test")
        assert row["test_examples"] == len(y)
        assert row["loss"] == pytest.approx(plain.loss(p, x, y), abs=1e-12)
        assert row["accuracy"] == pytest.approx(plain.accuracy(p, x, y))


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_other_clients_data_change_no_bit(split: Any, executor: str) -> None:
    """Minibatches, three clients; everything that clients 0 and 2 hold is replaced."""
    models = []
    for seed in (0, 1):
        rng = np.random.default_rng(7)
        x, y = rng.normal(size=(20, 8)), rng.integers(0, 4, 20)
        other = np.random.default_rng(seed)
        xs, ys = ([other.normal(size=(n, 8)) for n in (9, 30)], [other.integers(0, 4, n) for n in (9, 30)])
        split([xs[0], x, xs[1]], [ys[0], y, ys[1]], classes=4)
        ran = toy.simulate(
            "local_only",
            executor=executor,
            federation={"clients": 3, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}},
        )
        models.append(ran.clients())
    assert tree.same(models[0]["1"], models[1]["1"])
    assert not tree.same(models[0]["0"], models[1]["0"])


def test_all_start_from_the_runs_one_initial_model(done: toy.Result) -> None:
    m, task = done.fed.method, done.fed.task
    for client, key in ((0, 1), (5, 99)):
        assert tree.same(m.own_init(task, client, key)["model"], task.initial)
    assert any(float(torch.norm(p)) > 0 for p in task.initial.values())
