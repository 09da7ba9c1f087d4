"""FedSoft: shares by hand, one cluster is FedAvg, rounds in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import keys, tree
from tests import toy


def test_one_cluster_is_fedavg(plain: Any) -> None:
    soft = toy.simulate({"name": "fedsoft", "clusters": 1, "lam": 0.0, "selection": "weighted"}, **plain.WORK)
    average = toy.simulate("fedavg", **plain.WORK)
    ours, theirs = plain.vector(tree.pick(soft.state["experts"], 0)), plain.vector(average.state["model"])
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    asked = {c for d in soft.fed.drawn for c in d.ids}
    assert all((float(u[0]) == 1.0) == (c in asked) for c, u in enumerate(soft.state["shares"]))


@pytest.mark.parametrize("selection", ["weighted", "drawn"])
def test_rounds_in_numpy(plain: Any, selection: str) -> None:
    """Shares in rounds 1 and 3 and for newcomers, the pull, the clusters' means."""
    lam, floor = 0.4, 1e-3
    method = {"name": "fedsoft", "clusters": 2, "lam": lam, "floor": floor, "selection": selection, "every": 2}
    done = toy.simulate(method, rounds=3, **plain.WORK)
    models = [plain.vector(tree.pick(done.initial["experts"], k)) for k in (0, 1)]
    shares: dict[int, np.ndarray] = {}
    for draw in done.fed.drawn:
        after, sizes = {}, {}
        for c in draw.ids:
            x, y = plain.data(done.fed, c)
            if c not in shares or draw.round % 2:
                each = np.stack([-plain.log_probs(m, x)[np.arange(len(y)), y] for m in models])
                shares[c] = np.maximum(np.bincount(each.argmin(0), minlength=2) / len(y), floor)
        for c in draw.ids:
            x, y = plain.data(done.fed, c)
            u, sizes[c] = shares[c], len(y)
            w = (u[0] * models[0] + u[1] * models[1]) / u.sum()
            for _ in range(plain.STEPS):
                pull = sum(u[k] * (w - models[k]) for k in (0, 1))
                w = w - plain.LR * (plain.gradient(w, x, y) + lam * pull)
            after[c] = w
        ids = sorted(after)
        v = np.array([[shares[c][k] * sizes[c] for c in ids] for k in (0, 1)])
        v /= v.sum(1, keepdims=True)
        if selection == "drawn":
            rng = keys.numpy(keys.key(1, draw.round << 20, -1, "clients of clusters"))
            v = np.stack([rng.multinomial(len(ids), row / row.sum()) / len(ids) for row in v])
        models = [sum(v[k, i] * after[c] for i, c in enumerate(ids)) for k in (0, 1)]
    for k in (0, 1):
        np.testing.assert_allclose(plain.vector(tree.pick(done.state["experts"], k)), models[k], atol=1e-11)
    for c, u in shares.items():
        np.testing.assert_allclose(done.state["shares"][c].numpy(), u, atol=1e-12)
    for c in done.fed.drawn[-1].ids:
        np.testing.assert_allclose(plain.vector(done.clients()[str(c)]["w"]), after[c], atol=1e-11)


def test_shares_sum_to_one_before_the_floor() -> None:
    done = toy.simulate({"name": "fedsoft", "floor": 0.0}, executor="vmap")
    known = done.state["shares"][done.state["shares"][:, 0] >= 0]
    np.testing.assert_allclose(known.sum(1).numpy(), 1.0, atol=1e-6)
    assert set(done.fed.method.clusters(done.state).values()) <= {0, 1, 2}
