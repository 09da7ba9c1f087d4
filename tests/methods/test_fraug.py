"""FRAug: without made features FedAvg; the transformation with zero output is the identity; one step by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rayfed import keys, methods, tree
from rayfed.engine.resident import Resident
from rayfed.methods.fraug import forward, labelled, network, running
from tests import toy

needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_made_features_it_is_fedavg_to_the_bit(executor: str) -> None:
    done, plain = (toy.simulate(m, executor=executor) for m in ({"name": "fraug", "most": 0.0}, "fedavg"))
    assert tree.same(done.state["model"], plain.state["model"])
    assert tree.same(done.state["generator"], done.initial["generator"])


def test_a_transformation_of_zero_is_the_identity_and_rows_of_weight_0_change_nothing() -> None:
    task = toy.simulate("fedavg", rounds=1, dtype="float64").fed.task
    net = network(3, 5, task, (6, 7))
    still = {**net, "1": {**net["1"], "scale": torch.zeros(7), "shift": torch.zeros(7)}}
    x, y = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 4
    assert not forward(still, labelled(x, y, task), torch.ones(9), last=False).any()
    w = torch.tensor([1.0] * 6 + [0.0] * 3, dtype=torch.float64)
    some, alone = forward(net, labelled(x, y, task), w)[:6], forward(net, labelled(x[:6], y[:6], task), w[:6])
    torch.testing.assert_close(some, alone, rtol=0, atol=1e-12)


def test_running_means_by_hand() -> None:
    """Class 0: 0.7 * 10 + 0.3 * (1 + 3) / 2 = 7.6; class 1 is not in the batch, the last row is padding."""
    z = torch.tensor([[1.0], [3.0], [99.0]])
    batch = {"y": torch.tensor([0, 0, 1]), "w": torch.tensor([1.0, 1.0, 0.0])}
    after = running(z, batch, torch.tensor([[10.0], [5.0]]), torch.tensor([0.0, 0.0]), 0.3)
    assert after["means"][:, 0].tolist() == pytest.approx([7.6, 5.0]) and after["seen"].tolist() == [1.0, 0.0]


def test_one_step_by_hand(hand) -> None:
    """Round 2 of 3, one whole batch: the three losses written out again, by torch's own autograd."""
    s = {"gamma": 0.4, "most": 0.9, "away": 0.3, "near": 0.7, "generator_lr": 0.05, "transform_lr": 0.03, "noise": 5}
    work = {**hand.WORK, "local": {**hand.WORK["local"], "epochs": 1}}
    first = toy.simulate({"name": "fraug", **s}, rounds=3, until=1, **work)
    done = toy.simulate({"name": "fraug", **s}, rounds=3, until=2, **work)
    task, c = done.fed.task, next(c for c in done.fed.drawn[1].ids if c in done.fed.drawn[0].ids)
    x, y, w, key = last_batch(done, c)
    own, after = first.clients()[str(c)], done.clients()[str(c)]
    model, g = first.state["model"], first.state["generator"]
    h = hand.features(model, x)
    means = own["means"].clone()
    for k in y[w > 0].unique():
        means[k] = 0.7 * means[k] + 0.3 * h[(y == k) & (w > 0)].mean(0)
    torch.testing.assert_close(after["means"], means, rtol=0, atol=1e-12)
    q = math.exp(0.4 * (2 - 3))
    assert done.fed.method.reads_rounds() == "method.gamma" and min(0.9, q) == q
    rows = len(y)  # of a padded batch: labels in turn begin at round * rows
    turn, seen = (torch.arange(rows) + 2 * rows) % 4, own["seen"].clone()
    seen[y[w > 0]] = 1
    made = kinds(task, own["transform"], g, means[turn], seen[turn], turn, y, h, w, keys.fold(key, 1))

    def loss(p):
        parts = [
            (F.cross_entropy(hand.classify(p, v.detach()), k, reduction="none") * w).sum() / w.sum()
            for v, _, k, w in made
        ]
        real = (F.cross_entropy(hand.logits(p, x), y, reduction="none") * w).sum() / w.sum()
        return (1 - q) * real + q * sum(parts) / 2

    new = hand.descend(model, loss, 1)
    e = keys.uniform(keys.fold(key, 2), (rows, 5), torch.float64)
    flat, build = flattened(g)

    def generator(p):
        v = forward(build(p), labelled(e, turn, task), torch.ones(rows, dtype=torch.float64))
        gap = ((v - means[turn]).square().mean(1) * seen[turn]).sum() / seen[turn].sum()
        return F.cross_entropy(hand.classify(new, v), turn) - 0.3 * gap

    g2 = build(hand.descend(flat, generator, 1, lr=0.05))
    flat, build = flattened(own["transform"])
    h2 = hand.features(new, x)

    def transform(p):
        total = 0.0
        for v, ref, _, u in kinds(task, build(p), g2, means[turn], seen[turn], turn, y, h2, w, keys.fold(key, 3)):
            p_v = torch.log_softmax(hand.classify(new, v), 1)
            total = total + (((p_v.exp() * p_v).sum(1) + 0.7 * (v - ref).square().mean(1)) * u).sum() / u.sum() / 2
        return total

    want = hand.descend(flat, transform, 1, lr=0.03)
    for n, p in flattened(after["transform"])[0].items():
        torch.testing.assert_close(p, want[n], rtol=0, atol=1e-10)


def test_all_three_steps_are_clipped() -> None:
    """One step of each client: no network moves further than its rate times the norm allowed."""
    s = {"name": "fraug", "generator_lr": 0.05, "transform_lr": 0.03}
    done = toy.simulate(s, rounds=1, dtype="float64", local={"epochs": None, "steps": 1, "clip": 1e-3})
    moved = {
        0.1: (done.state["model"], done.initial["model"]),
        0.05: (done.state["generator"], done.initial["generator"]),
    }
    for lr, (now, before) in moved.items():
        assert 0 < float(tree.norm(tree.sub(now, before))) <= lr * 1e-3
    for c, own in done.initial_clients().items():
        gone = tree.norm(tree.sub(done.clients()[c]["transform"], own["transform"]))
        assert 0 < float(gone) <= 0.03 * 1e-3


def last_batch(done, c: int):
    """Rows, labels, weights and key of the one step of client c's last visit, as the engine drew them."""
    config, split = done.fed.config, done.fed.federation
    resident = Resident(config, split, None, "cpu")
    drawn = resident.sampler.cohort(
        resident.visit("train", False), [c], dispatch=(2 << 20) + 1, round=2, rounds=3, lr=0.1
    )
    (phase,) = drawn.phases
    rows = phase.rows[0, 0, 0].numpy()
    x, y = torch.as_tensor(split.arrays["x"][rows]).double(), torch.as_tensor(split.arrays["y"][rows])
    return x, y, phase.w[0, 0, 0], phase.keys[0, 0]


def kinds(task, t, g, of_turn, seen, turn, y, h, w, key):
    """Both kinds of made features: (features, references, labels, weights)."""
    out, ones = [], torch.ones(len(y), dtype=torch.float64)
    for i, (k, ref, even, weight) in enumerate(((turn, of_turn, ones, seen), (y, h, w, w))):
        e = keys.uniform(keys.fold(key, i), (len(y), 5), torch.float64)
        v = forward(g, labelled(e, k, task), even)
        out.append((ref + forward(t, labelled(v, k, task), even, last=False), ref, k, weight))
    return out


def flattened(net):
    flat = {"/".join(p): x for p, x in tree.leaves(net)}

    def build(p):
        return {n: {k: p[f"{n}/{k}"] for k in layer} for n, layer in net.items()}

    return flat, build
