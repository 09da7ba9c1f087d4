"""FedAvg against centralised SGD, one pooled gradient step, a NumPy loop and two parabolas worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rayfed import tree
from tests import toy

ALONE = {
    "federation": {"clients": 1, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}},
}


def one_client(seed: int = 0, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)), rng.integers(0, 4, n)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_client_is_centralised_sgd(split: Any, seen: list[Any], momentum: float) -> None:
    """torch's own network and SGD on the batches that the client saw; each epoch shows every example once."""
    x, y = one_client()
    split([x], [y], classes=4)
    local = {"epochs": 3, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": momentum}}
    done = toy.simulate("fedavg", executor="debug", dtype="float64", local=local, **ALONE)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    net.load_state_dict(dict(zip(net.state_dict(), done.initial["model"].values())))
    assert len(seen) == 2 * 3 * 3  # rounds, epochs, batches of 8, 8 and 4
    for round in range(2):
        opt = torch.optim.SGD(net.parameters(), 0.1, momentum=momentum)
        for batch in seen[9 * round : 9 * (round + 1)]:
            real = batch["w"] > 0
            opt.zero_grad()
            nn.functional.cross_entropy(net(batch["x"][real]), batch["y"][real]).backward()
            opt.step()
    for p, q in zip(net.parameters(), done.state["model"].values()):
        torch.testing.assert_close(p.data, q, rtol=0, atol=1e-12)
    rows = torch.cat([b["x"][b["w"] > 0] for b in seen[:3]])
    assert sorted(rows[:, 0].tolist()) == sorted(np.float32(x)[:, 0].tolist())


def test_one_full_batch_step_is_a_step_on_the_pooled_loss(plain: Any) -> None:
    """FedSGD: weights by examples make the mean of mean gradients the gradient of all examples together."""
    work = toy.merge(plain.WORK, {"local": {"epochs": 1}})
    done = toy.simulate("fedavg", rounds=1, **work)
    ids = done.fed.drawn[0].ids
    assert len(ids) == 7 and len({len(plain.data(done.fed, c)[1]) for c in ids}) > 3
    x, y = (np.concatenate(a) for a in zip(*(plain.data(done.fed, c) for c in ids)))
    start = plain.vector(done.initial["model"])
    want = start - 0.1 * plain.gradient(start, x, y)
    np.testing.assert_allclose(plain.vector(done.state["model"]), want, atol=1e-13)


def test_two_rounds_in_numpy(plain: Any) -> None:
    done = toy.simulate({"name": "fedavg", "server_lr": 0.7}, **plain.WORK)
    p = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        data = [plain.data(done.fed, c) for c in draw.ids]
        n = np.array([len(y) for _, y in data], float)
        updates = np.stack([plain.descend(p, x, y) - p for x, y in data])
        p = p + 0.7 * (n / n.sum()) @ updates
    np.testing.assert_allclose(plain.vector(done.state["model"]), p, atol=1e-13)


def test_the_cards_two_parabolas(quadratics: Any) -> None:
    """core-baselines card, reference numbers: FedAvg's first rounds and its biased fixed point."""
    changes = quadratics()
    for rounds, want in ((1, 0.328039), (2, 0.439431), (3, 0.477256), (15, 0.496705)):
        done = toy.simulate("fedavg", rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


def test_weights_are_examples(quadratics: Any) -> None:
    """15 and 5 examples, as many steps: x^1 = 3/4 (1 - 0.8^15) + 1/4 (0.98^5 - 1)."""
    done = toy.simulate("fedavg", rounds=1, **quadratics(15, 5))
    want = 0.75 * (1 - 0.8**15) + 0.25 * (0.98**5 - 1)
    assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-13)
    assert [r.steps for r in done.fed.ask(done.fed.method.train, [0, 1], shared=done.state)] == [15, 5]


def test_identical_clients_are_one_client(split: Any, plain: Any) -> None:
    x, y = one_client()
    models = []
    for n in (1, 4):
        split([x] * n, [y] * n, classes=4)
        changes = toy.merge(plain.WORK, toy.merge(ALONE, {"federation": {"clients": n}}))
        models.append(plain.vector(toy.simulate("fedavg", **changes).state["model"]))
    np.testing.assert_allclose(models[0], models[1], atol=1e-13)


def test_server_lr_scales_the_mean_update() -> None:
    one, half = (toy.simulate({"name": "fedavg", "server_lr": s}, rounds=1, executor="vmap") for s in (1.0, 0.5))
    assert tree.same(one.initial, half.initial)
    moved = tree.sub(one.state["model"], one.initial["model"])
    assert tree.norm(moved) > 0.1
    assert tree.same(half.state["model"], tree.add(one.initial["model"], tree.scale(moved_exactly(one), 0.5)))


def moved_exactly(done: toy.Result) -> tree.Tree:
    """The mean update itself, asked for once more (a difference of models would round)."""
    from rayfed.fold import mean

    fed = toy.make_fed(done.fed.config)
    fed.begin(1)
    return fed.ask(fed.method.train, fed.sample(), shared=done.initial, fold=mean("delta")).folded["delta"]
