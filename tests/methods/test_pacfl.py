"""PACFL: what goes up once, the clusters it makes, and FedAvg in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import methods, tree
from rayfed.cluster import canonical
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


def planes(rng: np.random.Generator, group: int, n: int = 16) -> np.ndarray:
    """Inputs near one of three planes of R^8, the same two axes for both classes."""
    x = 0.02 * rng.normal(size=(n, 8))
    x[:, 2 * group : 2 * group + 2] += np.array([3.0, 0]) + rng.normal(size=(n, 2))
    return x


GROUP = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
PLANTED = {"clients": 11, "per_round": None, "holdout": {"kind": "none"}}


@pytest.fixture
def planted(split: Any) -> Any:
    rng = np.random.default_rng(0)
    return split([planes(rng, g) for g in GROUP], [np.arange(16) % 2 for _ in GROUP], group=GROUP)


@pytest.mark.parametrize("angles", ["principal", "entries"])
@pytest.mark.parametrize("measure", ["smallest", "sum"])
def test_planted_groups_are_found_in_round_1(planted: Any, angles: str, measure: str) -> None:
    spec = {"name": "pacfl", "angles": angles, "measure": measure, "basis": 1}
    done = toy.simulate(spec, rounds=2, executor="vmap", federation=PLANTED)
    assert done.state["assignment"].tolist() == GROUP
    assert done.scores()[0]["clusters/ari"] == 1.0
    assert "clusters/proximity_median" in done.rows[0] and "clusters/proximity_median" not in done.rows[1]
    # the groups' planes are orthogonal: a threshold takes the place of a number of clusters
    spec |= {"threshold": 45 if measure == "smallest" else 90}
    assert toy.simulate(spec, rounds=1, executor="vmap", federation=PLANTED).state["assignment"].tolist() == GROUP


def test_rotated_digits_are_separated() -> None:
    c = {
        "task": {"data": "digits", "model": "linear"},
        "federation": {
            "clients": 12, "per_round": None, "partition": {"kind": "iid"},
            "groups": {"kind": "rotation", "count": 3}, "holdout": {"kind": "clients", "fraction": 0.25},
        },
        "local": {"epochs": 1, "batch_size": 64},
    }  # fmt: skip
    done = toy.simulate("pacfl", rounds=1, executor="vmap", **c)
    assert done.scores()[0]["clusters/ari"] == 1.0
    # newcomers are matched by their bases: those of one planted group meet its members
    groups = done.fed.federation.group
    of_group = {int(g): k for g, k in zip(groups[:9], done.state["assignment"].tolist())}
    assert done.state["newcomers"].tolist() == [of_group[int(g)] for g in groups[9:]]


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_thresholds_at_the_ends(executor: str) -> None:
    for threshold, want in ((0.0, list(range(12))), (180.0, [0] * 12)):
        spec = {"name": "pacfl", "measure": "smallest", "threshold": threshold}
        done = toy.simulate(spec, rounds=1, executor=executor)
        assert done.state["assignment"].tolist() == want


@needs_fedavg
def test_one_cluster_on_whole_batches_is_fedavg(plain: Any) -> None:
    one = toy.simulate({"name": "pacfl", "clusters": 1}, rounds=3, **plain.WORK)
    average = toy.simulate("fedavg", rounds=3, **plain.WORK)
    np.testing.assert_allclose(
        plain.vector(one.state["experts"]["0"]), plain.vector(average.state["model"]), atol=1e-13
    )


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_one_cluster_is_fedavg_to_the_bit_after_the_exchange(executor: str) -> None:
    """In a round without the exchange the same clients draw the same batches."""
    c = toy.config({"name": "pacfl", "clusters": 1}, executor=executor)
    fed, other = toy.make_fed(c), toy.make_fed(toy.config("fedavg", executor=executor))
    state = fed.method.init(fed.task, 5)
    model = state["experts"]["0"]
    state = {**state, "assignment": 0 * state["assignment"]}
    for f in (fed, other):
        f.begin(2)
    after = fed.method.round(state, fed, fed.task)["experts"]["0"]
    assert tree.same(after, other.method.round({"model": model}, other, other.task)["model"])


def test_fedavg_in_each_cluster(plain: Any) -> None:
    done = toy.simulate({"name": "pacfl", "weight": "examples"}, rounds=3, **plain.WORK)
    at = done.state["assignment"].tolist()
    assert len(set(at)) == 3 and canonical(np.array(at)).tolist() == at
    models = [plain.vector(done.initial["experts"]["0"])] * 3
    for draw in done.fed.drawn:
        for k in set(at[i] for i in draw.ids):
            ids = [i for i in draw.ids if at[i] == k]
            data = [plain.data(done.fed, i) for i in ids]
            trained = [plain.descend(models[k], *d) for d in data]
            models[k] = np.average(trained, axis=0, weights=[len(d[1]) for d in data])
    for k, want in enumerate(models):
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(k)]), want, atol=1e-12)


def test_bases_go_up_once_and_from_everyone() -> None:
    """12 clients x 8 features x (4 classes x 3) x 4 bytes in the first round; then updates alone."""
    done = toy.simulate("pacfl", rounds=3, executor="vmap")
    updates = 7 * (212 * 4 + 8)
    assert [r["bytes/up"] for r in done.rows] == [updates + 12 * 8 * 12 * 4, updates, updates]
    assert [r["bytes/down"] for r in done.rows] == [7 * (212 * 4 + 8)] * 3  # a model, and which one
    assert [r["visits"] for r in done.rows] == [12 + 7, 7, 7]


def test_who_was_not_reached_joins_later(planted: Any) -> None:
    """Clients 0 and 4 had no cluster: they send bases when they are next asked, and go where their like are."""
    fed = toy.make_fed(toy.config({"name": "pacfl", "basis": 1}, executor="vmap", federation=PLANTED))
    fed.begin(1)
    state = fed.method.round(fed.method.init(fed.task, 5), fed, fed.task)
    away = {**state, "assignment": state["assignment"].clone()}
    away["assignment"][[0, 4]] = -1
    fed.begin(2)
    after = fed.method.round(away, fed, fed.task)
    assert after["assignment"].tolist() == GROUP
    params = sum(p.numel() for p in tree.values(fed.task.params_like))
    assert fed.meter["bytes/up"] == 11 * (params * 4 + 8) + 2 * (8 * 2) * 4
    again = fed.method.round(after, fed, fed.task)
    assert again["assignment"].tolist() == GROUP


def test_held_out_clients_are_served_their_clusters_model(plain: Any) -> None:
    done = toy.simulate("pacfl", rounds=2, **plain.WORK)
    new = done.state["newcomers"].tolist()
    assert len(new) == 2
    for row in (r for r in done.scores()[1] if r["unseen"]):
        model = plain.vector(done.state["experts"][str(new[row["client"] - 12])])
        assert row["loss"] == pytest.approx(plain.loss(model, *plain.data(done.fed, row["client"], "test")), abs=1e-12)


def test_clusters_do_not_depend_on_the_order_of_clients(planted: Any) -> None:
    shuffled = toy.simulate("pacfl", rounds=1, executor="vmap", federation=PLANTED, order=3)
    assert shuffled.state["assignment"].tolist() == GROUP
