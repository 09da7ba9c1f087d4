"""FedAvgM: without momentum it is FedAvg to the bit; with it, the heavy ball in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed import tree
from tests import toy


def test_without_momentum_it_is_fedavg() -> None:
    a, b = (toy.simulate(m, executor="vmap") for m in ({"name": "fedavgm", "momentum": 0.0}, "fedavg"))
    assert tree.same(a.state["model"], b.state["model"]) and a.rows == b.rows


def test_three_rounds_in_numpy(plain: Any) -> None:
    """v <- 0.6 v + the mean update by examples, x <- x + 0.5 v, without a factor 1 - 0.6."""
    done = toy.simulate({"name": "fedavgm", "momentum": 0.6, "server_lr": 0.5}, rounds=3, **plain.WORK)
    p = plain.vector(done.initial["model"])
    v = np.zeros_like(p)
    for draw in done.fed.drawn:
        data = [plain.data(done.fed, c) for c in draw.ids]
        n = np.array([len(y) for _, y in data], float)
        v = 0.6 * v + (n / n.sum()) @ np.stack([plain.descend(p, x, y) - p for x, y in data])
        p = p + 0.5 * v
    np.testing.assert_allclose(plain.vector(done.state["model"]), p, atol=1e-13)
    np.testing.assert_allclose(plain.vector(done.state["v"]), v, atol=1e-13)


def test_a_round_without_replies_changes_nothing() -> None:
    method = {"name": "fedavgm", "momentum": 0.9}
    before = toy.simulate(method, rounds=1, executor="vmap").state

    class Nobody(toy.ToyFed):
        def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
            return super().sample(n, where=where)[: 99 if self.round == 1 else 0]

    assert tree.same(toy.simulate(method, rounds=2, executor="vmap", kind=Nobody).state, before)
