"""IFCA: choices, averages and what stays, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from tests import toy

SOFTMAX = {"dtype": "float64", "executor": "vmap", "task": {"model": "linear"}, "local": {"batch_size": 64}}


def experts(done: toy.Result, plain: Any) -> list[np.ndarray]:
    return [plain.vector(e) for e in tree.unstack(done.state["experts"])]


def one_round(c: Any, state: tree.Tree, number: int = 1) -> tuple[tree.Tree, toy.ToyFed]:
    fed = toy.make_fed(c)
    fed.begin(number)
    return fed.method.round(state, fed, fed.task), fed


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_one_cluster_by_examples_is_fedavg_to_the_bit(executor: str) -> None:
    one = toy.simulate({"name": "ifca", "clusters": 1, "weight": "examples"}, executor=executor)
    plain = toy.simulate("fedavg", executor=executor)
    assert tree.same(tree.pick(one.state["experts"], 0), plain.state["model"])


@pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
def test_one_cluster_on_whole_batches_is_fedavg(plain: Any) -> None:
    one = toy.simulate({"name": "ifca", "clusters": 1, "weight": "examples"}, **plain.WORK)
    average = toy.simulate("fedavg", **plain.WORK)
    np.testing.assert_allclose(experts(one, plain)[0], plain.vector(average.state["model"]), atol=1e-13)


@pytest.mark.parametrize("weight", ["one", "examples"])
def test_three_rounds_in_numpy(plain: Any, weight: str) -> None:
    """Each client takes the model with the least training loss; a model is the mean of those trained from it."""
    done = toy.simulate({"name": "ifca", "weight": weight}, rounds=3, **plain.WORK)
    models = [plain.vector(e) for e in tree.unstack(done.initial["experts"])]
    chosen: dict[int, int] = {}
    for draw in done.fed.drawn:
        trained: dict[int, list[tuple[float, np.ndarray]]] = {}
        for c in draw.ids:
            x, y = plain.data(done.fed, c)
            k = chosen[c] = int(np.argmin([plain.loss(m, x, y) for m in models]))
            n = len(y) if weight == "examples" else 1
            trained.setdefault(k, []).append((n, plain.descend(models[k], x, y)))
        for k, got in trained.items():
            models[k] = np.average([m for _, m in got], axis=0, weights=[n for n, _ in got])
    assert len(set(chosen.values())) > 1
    for mine, want in zip(experts(done, plain), models):
        np.testing.assert_allclose(mine, want, atol=1e-12)
    assert done.state["assignment"].tolist() == [chosen.get(c, -1) for c in range(12)]
    assert done.fed.method.clusters(done.state) == dict(sorted(chosen.items()))


def test_the_choice_is_the_least_of_independent_losses() -> None:
    """torch's own network and cross-entropy on minibatched data: no other model is better for that client."""
    c = toy.config({"name": "ifca", "clusters": 4}, dtype="float64", executor="vmap", federation={"per_round": None})
    fed = toy.make_fed(c)
    state = fed.method.init(fed.task, 5)
    after, fed = one_round(c, state)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).double()
    losses = np.zeros((12, 4))
    for k, e in enumerate(tree.unstack(state["experts"])):
        net.load_state_dict(dict(zip(net.state_dict(), e.values())))
        for i in range(12):
            rows = fed.federation.train[i]
            x, y = (torch.as_tensor(fed.federation.arrays[n][rows]) for n in ("x", "y"))
            losses[i, k] = torch.nn.functional.cross_entropy(net(x.double()), y).item()
    assert after["assignment"].tolist() == losses.argmin(1).tolist()
    assert len(set(losses.argmin(1))) > 1


def test_what_nobody_picks_stays_to_the_bit() -> None:
    c = toy.config("ifca", executor="vmap")
    fed = toy.make_fed(c)
    first, _, third = tree.unstack(fed.method.init(fed.task, 5)["experts"])
    poor = tree.map(lambda p: p * 50, first)
    state = {"experts": tree.stack([first, poor, third]), "assignment": torch.full((12,), -1)}
    after, _ = one_round(c, state)
    assert 1 not in after["assignment"].tolist()
    assert tree.same(tree.pick(after["experts"], 1), poor)
    assert not tree.same(tree.pick(after["experts"], 0), first) or not tree.same(tree.pick(after["experts"], 2), third)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_other_names_of_the_models_change_only_names(executor: str) -> None:
    c = toy.config("ifca", executor=executor)
    fed = toy.make_fed(c)
    state = fed.method.init(fed.task, 5)
    order = [2, 0, 1]  # model k of the other run is model order[k] of this one
    other = {**state, "experts": tree.stack([tree.pick(state["experts"], k) for k in order])}
    a, b = one_round(c, state)[0], one_round(c, other)[0]
    for k in range(3):
        assert tree.same(tree.pick(b["experts"], k), tree.pick(a["experts"], order[k]))
    assert [order[k] if k >= 0 else -1 for k in b["assignment"].tolist()] == a["assignment"].tolist()


def test_models_start_apart_and_the_first_is_everyones_start() -> None:
    done = toy.simulate("ifca", rounds=1, executor="vmap")
    first, *others = tree.unstack(done.initial["experts"])
    assert tree.same(first, done.fed.task.initial)
    assert len(others) == 2 and not tree.same(others[0], others[1]) and not tree.same(first, others[0])


def test_an_absent_client_keeps_its_last_choice() -> None:
    one, two = (toy.simulate("ifca", rounds=r, executor="vmap").state["assignment"].tolist() for r in (1, 2))
    drawn = toy.simulate("ifca", rounds=2, executor="vmap").fed.drawn
    absent = set(range(12)) - set(drawn[1].ids)
    assert absent & set(drawn[0].ids)
    assert all(one[c] == two[c] for c in absent)
    assert [c for c in range(12) if one[c] >= 0] == list(drawn[0].ids)


def test_served_by_training_loss(plain: Any) -> None:
    """Every client, the held-out ones too, is scored with the model that is best on its training data."""
    done = toy.simulate("ifca", **plain.WORK)
    models = experts(done, plain)
    for row in done.scores()[1]:
        train, test = (plain.data(done.fed, row["client"], s) for s in ("train", "test"))
        best = min(models, key=lambda m: plain.loss(m, *train))
        assert row["loss"] == pytest.approx(plain.loss(best, *test), abs=1e-12)


def test_planted_groups_are_kept_apart(split: Any) -> None:
    """Opposite labels on like inputs, two models that tilt slightly to one group each: the choices are the groups."""
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(24, 8)) for _ in range(8)]
    group = [0, 1] * 4
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, group)], group=group)
    everyone = {"clients": 8, "per_round": None, "holdout": {"kind": "none"}}
    c = toy.config({"name": "ifca", "clusters": 2}, task={"model": "linear"}, executor="vmap", federation=everyone)
    tilt = torch.zeros(2, 2, 8)
    tilt[0, :, 0], tilt[1, :, 0] = torch.tensor([-0.1, 0.1]), torch.tensor([0.1, -0.1])
    state = {"experts": {"head.weight": tilt, "head.bias": torch.zeros(2, 2)}, "assignment": torch.full((8,), -1)}
    for number in (1, 2):
        state = one_round(c, state, number)[0]
        assert state["assignment"].tolist() == group
    pulled = state["experts"]["head.weight"][:, 1, 0] - state["experts"]["head.weight"][:, 0, 0]
    assert float(pulled[0]) > 0.5 and float(pulled[1]) < -0.5
