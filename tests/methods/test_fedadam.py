"""FedAdam: three rounds in NumPy, and the mean update where the second moment does not count."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayfed import tree
from tests import toy


def test_three_rounds_in_numpy(plain: Any) -> None:
    """v <- beta2 v + (1 - beta2) Delta^2 from tau^2; m <- beta1 m + (1 - beta1) Delta, x <- x + eta m / (sqrt v + tau)."""
    settings = {"server_lr": 0.1, "tau": 0.02, "beta1": 0.6, "beta2": 0.8}
    done = toy.simulate({"name": "fedadam", **settings}, rounds=3, **plain.WORK)
    p = plain.vector(done.initial["model"])
    m, v = np.zeros_like(p), np.full_like(p, 0.02**2)
    for draw in done.fed.drawn:
        data = [plain.data(done.fed, c) for c in draw.ids]
        n = np.array([len(y) for _, y in data], float)
        d = (n / n.sum()) @ np.stack([plain.descend(p, x, y) - p for x, y in data])
        m, v = 0.6 * m + 0.4 * d, 0.8 * v + 0.2 * d**2
        p = p + 0.1 * m / (np.sqrt(v) + 0.02)
    for part, want in (("model", p), ("m", m), ("v", v)):
        np.testing.assert_allclose(plain.vector(done.state[part]), want, atol=1e-13)


def test_a_large_tau_is_the_mean_update_scaled() -> None:
    """Against tau = 1e6 the second moment is nothing: sqrt v is tau sqrt(beta2), so eta undoes the divisor and x moves by the mean."""
    settings = {"server_lr": 1e6 * (1 + 0.99**0.5), "tau": 1e6, "beta1": 0.0}
    work = {"executor": "vmap", "dtype": "float64", "rounds": 1}
    ours, plain = toy.simulate({"name": "fedadam", **settings}, **work), toy.simulate("fedavg", **work)
    want = tree.sub(plain.state["model"], plain.initial["model"])
    moved = tree.sub(ours.state["model"], ours.initial["model"])
    assert float(tree.norm(tree.sub(moved, want))) < 1e-5 * float(tree.norm(want))
