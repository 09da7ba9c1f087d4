"""FedALA: weights that stay 1 are FedAvg; mixing and learning by hand."""

from __future__ import annotations

import pytest
import torch

from rayfed import methods, tree
from rayfed.errors import ConfigError
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_weights_that_do_not_learn_are_fedavg_to_the_bit(executor: str) -> None:
    done, plain = (toy.simulate(m, executor=executor, rounds=3) for m in ({"name": "fedala", "eta": 0.0}, "fedavg"))
    assert tree.same(done.state["model"], plain.state["model"])
    assert [r["bytes/up"] for r in done.rows] == [r["bytes/up"] for r in plain.rows]
    assert [r["bytes/down"] for r in done.rows] == [r["bytes/down"] for r in plain.rows]


def mix(model, own, w):
    return {n: own[n] + (p - own[n]) * w[n] if n in w else p for n, p in model.items()}


def learn(hand, model, own, w, x, y, eta: float, passes: int):
    for _ in range(passes):
        w = {n: v.detach().requires_grad_() for n, v in w.items()}
        slopes = torch.autograd.grad(hand.loss(mix(model, own, w), x, y), list(w.values()))
        w = {n: (v.detach() - eta * g).clamp(0, 1) for (n, v), g in zip(w.items(), slopes, strict=True)}
    return w


def test_rounds_and_served_models_by_hand(hand) -> None:
    """Five rounds of half of the clients, so that some learn for the first time late; the share of one batch is that batch."""
    eta, start = 30.0, 3
    method = {"name": "fedala", "eta": eta, "start_epochs": start, "adaptive": ["head", "bias"]}
    done = toy.simulate(method, rounds=5, **hand.WORK)
    first = {n: p.clone() for n, p in done.initial["model"].items()}
    layers = ("body.0.bias", *hand.HEAD)
    model, own, weights, learned = first, {}, {}, set()
    for r, draw in enumerate(done.fed.drawn, 1):
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            passes = start if r > 1 and c not in learned else 1
            learned |= {c} if r > 1 else set()
            w = weights.get(c, {k: torch.ones_like(first[k]) for k in layers})
            weights[c] = learn(hand, model, own.get(c, first), w, x, y, eta, passes)
            begin = mix(model, own.get(c, first), weights[c])
            own[c] = hand.descend(begin, lambda p: hand.loss(p, x, y))  # noqa: B023
            updates.append({k: own[c][k] - model[k] for k in model})
            n.append(len(y))
        model = {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    hand.same(done.state["model"], model, atol=1e-10)
    assert done.state["learned"].nonzero()[:, 0].tolist() == sorted(learned)
    states = done.clients()
    assert any(float(w.min()) == 0.0 for s in states.values() for w in s["weights"].values())
    for c, state in states.items():
        hand.same(state["own"], own[int(c)], atol=1e-10)
        hand.same(state["weights"], weights[int(c)], atol=1e-8)
    for row in done.scores()[1]:
        c = row["client"]
        x, y = hand.data(done.fed, c)
        served = model
        if c in own:
            served = mix(model, own[c], learn(hand, model, own[c], weights[c], x, y, eta, 1))
        want = hand.loss(served, *hand.data(done.fed, c, "test"))
        assert row["loss"] == pytest.approx(float(want), abs=1e-8), "who never took part is served the global model"
    assert tree.same(states, done.clients()), "what is learned to serve is not kept"


def test_a_share_of_the_batches_teaches_the_weights() -> None:
    """Half of the batches of a pass, rounded up; the rest changes nothing."""
    from types import SimpleNamespace

    done = toy.simulate({"name": "fedala", "share": 0.5}, rounds=1)
    phase = done.fed.method.learning(done.fed.task, 2)
    info = SimpleNamespace(ahead=torch.tensor(10), lr=torch.tensor(0.1))
    zero = tree.zeros(done.initial["model"])
    weights = {"head.weight": torch.ones_like(zero["head.weight"])}
    client = SimpleNamespace(info=info, shared={"model": done.initial["model"]}, own={"own": zero, "weights": weights})
    carry, moved = phase.enter(client, {}), []
    batch = {"x": torch.ones(3, 8), "y": torch.tensor([0, 1, 2]), "w": torch.ones(3)}
    for _ in range(10):
        after = phase.step(carry, batch, torch.tensor(1))
        moved.append(not torch.equal(after["weights"]["head.weight"], carry["weights"]["head.weight"]))
        carry = after
    assert moved == [True, True, True, False, False] * 2


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.adaptive: 'haed' found, .*did you mean 'head'"):
        toy.simulate({"name": "fedala", "adaptive": ["haed"]}, rounds=1)
