"""FedProx: without the pull it is FedAvg to the bit; with it, local steps in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from tests import toy


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_the_pull_it_is_fedavg(executor: str) -> None:
    a, b = (toy.simulate(m, executor=executor) for m in ({"name": "fedprox", "mu": 0.0}, "fedavg"))
    assert tree.same(a.state, b.state) and a.rows == b.rows


def test_two_rounds_in_numpy(plain: Any) -> None:
    """The gradient at y is that of F_i plus mu (y - x^r); means are by examples."""
    mu = 0.7
    done = toy.simulate({"name": "fedprox", "mu": mu}, **plain.WORK)
    p = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        data = [plain.data(done.fed, c) for c in draw.ids]
        n = np.array([len(y) for _, y in data], float)
        updates = []
        for x, y in data:
            q = p
            for _ in range(plain.STEPS):
                q = q - plain.LR * (plain.gradient(q, x, y) + mu * (q - p))
            updates.append(q - p)
        p = p + (n / n.sum()) @ np.stack(updates)
    np.testing.assert_allclose(plain.vector(done.state["model"]), p, atol=1e-13)
