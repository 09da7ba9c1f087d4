"""OCFL: the temperature by hand, FedAvg before the clustering, the round of the clustering in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.methods.ocfl import temperature
from tests import toy
from tests.configs import the_problem

ALL: dict[str, Any] = {"federation": {"per_round": None}}
GROUP = [0, 1, 1, 0, 1, 0, 0, 1, 0]


def of(*updates: Any, p: float = 2.0) -> float:
    u = np.asarray(updates, float)
    return temperature(u @ u.T, p)


def test_temperature_by_hand() -> None:
    assert of([1, 2], [1, 2], [3, 6]) == pytest.approx(0, abs=1e-7)
    assert of([1, 0], [-5, 0]) == of([1, 0], [-5, 0], p=3) == 1.0
    # two at right angles and a third opposite to the first: 1, 2, 1 of at most 2 each, both ways
    assert of([1, 0], [0, 1], [-1, 0]) == pytest.approx(np.sqrt(2 * (1 + 4 + 1) / (6 * 4)))
    assert of([1, 0], [0, 7], [-9, 0]) == of([1, 0], [0, 1], [-1, 0]) and of([1.0]) == 0.0


def test_before_the_clustering_it_is_unweighted_fedavg_to_the_bit() -> None:
    """CFL that never cuts is that; here the temperature has not risen after the first round."""
    never = {"name": "cfl", "weight": "one", "min_round": 99}
    one, average = (toy.simulate(m, executor="vmap", rounds=1, **ALL) for m in ("ocfl", never))
    assert tree.same(one.state["experts"]["0"], average.state["experts"]["0"])
    assert set(one.state["assignment"].tolist()) == {0} and 0 < float(one.state["temperature"]) < 1


@pytest.mark.parametrize("lr", [1.0, 0.5])
def test_rounds_in_numpy(plain: Any, split: Any, lr: float) -> None:
    """Opposite labels pull apart as soon as the common direction is learned; then each group is averaged by itself."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(24, 8)) for _ in GROUP]
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, GROUP)], group=GROUP)
    changes = toy.merge(plain.WORK, {"federation": {"clients": 9, "per_round": None, "holdout": {"kind": "none"}}})
    method = {"name": "ocfl", "clusterer": {"kind": "oracle"}, "server_lr": lr}
    done = toy.simulate(method, rounds=6, **changes)
    models, members, last = {0: plain.vector(done.initial["experts"]["0"])}, {0: list(range(9))}, 9.0
    for row in done.rows:
        moved = {
            i: plain.descend(models[k], *plain.data(done.fed, i)) - models[k]
            for k, mine in members.items()
            for i in mine
        }
        if len(models) == 1:
            t = of(*(moved[i] for i in range(9)))
            assert row["clusters/temperature"] == pytest.approx(t, abs=1e-6)
            if t > last:
                members = {k: [i for i, g in enumerate(GROUP) if g == k] for k in (0, 1)}
                models = {k: models[0] for k in members}
            last = t
        models = {k: m + lr * np.mean([moved[i] for i in members[k]], axis=0) for k, m in models.items()}
    assert len(models) == 2, "the temperature rose"
    for k, want in models.items():
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(k)]), want, atol=1e-10)
    assert done.fed.method.clusters(done.state) == dict(enumerate(GROUP))
    assert sum("clusters/temperature" in row for row in done.rows) < 6 and float(done.state["temperature"]) == 3.0


def test_one_cluster_is_fedavg_to_the_end() -> None:
    """Twelve clients and a least cluster of eleven: whatever is found is one."""
    one = toy.simulate(
        {"name": "ocfl", "clusterer": {"kind": "hdbscan", "min_size": 11}}, executor="vmap", rounds=4, **ALL
    )
    average = toy.simulate({"name": "cfl", "weight": "one", "min_round": 99}, executor="vmap", rounds=4, **ALL)
    assert tree.same(one.state["experts"]["0"], average.state["experts"]["0"]) and len(one.state["experts"]) == 1


def test_what_it_needs_is_said() -> None:
    assert the_problem("method=ocfl", "federation.per_round=10").startswith(
        "federation.per_round: 10 found, ocfl compares all clients"
    )
    assert "allowed: hdbscan, mean_shift, affinity, oracle" in the_problem(
        "method={name: ocfl, clusterer: {kind: kmeans}}"
    )
