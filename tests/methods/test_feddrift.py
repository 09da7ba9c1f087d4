"""FedDrift: distances and merges by hand, without drift it is FedAvg, drifted clients open clusters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.methods import feddrift
from tests import toy

DRIFT: dict[str, Any] = {
    "per_round": None,
    "partition": {"kind": "iid"},
    "groups": {"kind": "none"},
    "stream": {"kind": "drift", "every": 2, "tasks": 2, "share": 0.5},
}


def test_distances_by_hand() -> None:
    losses = np.array([[1.0, 3.0, 1.2], [2.0, 1.5, 4.0], [1.1, 2.0, 0.9]])
    assert feddrift.distances(losses) == pytest.approx(np.array([[0, 1.5, 0.3], [1.5, 0, 3.1], [0.3, 3.1, 0]]))
    d = np.array([[0, 0.1, 0.3], [0.1, 0, 0.6], [0.3, 0.6, 0]])
    rows = np.ones(3)
    assert feddrift.merged(d, rows, 0.05) == [[0], [1], [2]]
    assert feddrift.merged(d, rows, 0.2) == [[0, 1], [2]]
    assert feddrift.merged(d, rows, 0.5) == [[0, 1], [2]]  # 0 and 2 are 0.3 apart, but 1 and 2 are 0.6
    assert feddrift.merged(d, rows, 0.7) == [[0, 1, 2]]


def test_without_drift_it_is_fedavg(plain: Any) -> None:
    """To the bit in the first time step; later, with whole batches, which have no order."""
    ours, theirs = (toy.simulate(m, executor="vmap") for m in ({"name": "feddrift", "delta": 1e9}, "fedavg"))
    assert tree.same(ours.state["experts"], {"0": theirs.state["model"]})
    method = {"name": "feddrift", "every": 1, "delta": 1e9}
    ours, theirs = (toy.simulate(m, rounds=3, **plain.WORK) for m in (method, "fedavg"))
    one = plain.vector(ours.state["experts"]["0"])
    np.testing.assert_allclose(one, plain.vector(theirs.state["model"]), atol=1e-12)


@pytest.mark.parametrize("eager", [False, True])
def test_clients_that_drift_open_clusters(eager: bool) -> None:
    """Half of the clients get permuted labels before round 3: their losses rise, the others' do not."""
    method = {"name": "feddrift", "every": 2, "delta": 0.05, "eager": eager}
    work = {"executor": "vmap", "federation": DRIFT, "local": {"epochs": 8}}
    before, after = (toy.simulate(method, rounds=4, until=until, **work) for until in (2, 3))
    group = after.fed.federation.group[:12]
    assert set(group) == {0, 1} and set(before.state["assignment"].tolist()) == {0}
    found = after.state["assignment"].numpy()
    assert (found[group == 0] == 0).all() and (found[group == 1] > 0).all()
    moved = int((group == 1).sum())
    assert len(set(found[group == 1])) == (1 if eager else moved) and after.rows[-1]["clusters/drifted"] == moved
    assert int(after.state["next"]) == 1 + (1 if eager else moved)


def test_clusters_that_fit_merge_to_their_mean() -> None:
    """Every cluster merges where delta is large; the model is the mean by rows, and ids are one."""
    method = {"name": "feddrift", "every": 2, "delta": 0.05}
    done = toy.simulate(
        method, rounds=4, until=3, executor="vmap", dtype="float64", federation=DRIFT, local={"epochs": 8}
    )
    one = done.fed.method.settings.model_copy(update={"delta": 1e9})
    done.fed.method.settings = one
    state = done.fed.method._settle(done.state, done.fed, range(12))
    assert list(state["experts"]) == ["0"] and set(state["assignment"].tolist()) == {0}
    rows = done.fed.federation.train.sizes()[:12]
    weights = {k: rows[done.state["assignment"].numpy() == int(k)].sum() / rows.sum() for k in done.state["experts"]}
    for n, p in state["experts"]["0"].items():
        wanted = sum(w * done.state["experts"][k][n] for k, w in weights.items())
        np.testing.assert_allclose(p.numpy(), wanted.numpy(), atol=1e-12)
    assert (state["heard"] == 3).all() and (state["last"] > 0).all()
