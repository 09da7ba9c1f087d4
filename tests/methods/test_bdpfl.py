"""BDPFL: without its terms FedAvg and local training to the bit, targets are constant, weights and maps by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.attack import trigger
from rayfed.methods import bdpfl
from tests import toy

ALONE = {"name": "bdpfl", "lam": 0.0, "mu": 0.0}


def test_without_its_terms_it_is_fedavg_and_local_training_to_the_bit() -> None:
    ours, average, alone = (toy.simulate(m, executor="vmap") for m in (ALONE, "fedavg", "local_only"))
    assert tree.same(ours.state["model"], average.state["model"])
    private = {c: s["private"] for c, s in ours.clients().items()}
    assert private and all(tree.same(p, alone.clients()[c]["model"]) for c, p in private.items())


@pytest.mark.parametrize("kind", ["attention", "gradcam"])
def test_equal_models_add_nothing(kind: str, hand: Any) -> None:
    """Both start as the initial model, so that the first step's terms are 0; later ones are not."""
    settings = {"name": "bdpfl", "lam": 0.7, "mu": 0.3, "map": kind}
    work = {
        "local": {"epochs": None, "steps": 1},
        "federation": {"per_round": None},
        "dtype": "float64",
        "executor": "vmap",
    }
    ours, plain = (toy.simulate(m, rounds=1, **work) for m in (settings, ALONE))
    hand.same(ours.state["model"], plain.state["model"])  # equal sides
    task, private, shared = ours.fed.task, ours.clients()["0"]["private"], ours.state["model"]
    other = toy.simulate(settings, rounds=2, **work)
    rows = ours.fed.federation.train[0]
    x, y = (torch.as_tensor(ours.fed.federation.arrays[n][rows]) for n in "xy")
    x, blocks = x.double(), list(task.cuts)
    assert len(blocks) == 1 and other.fed.task.cuts == task.cuts

    def maps(p: Any) -> torch.Tensor:
        answers = task.watch(p, x, blocks)[blocks[0]]
        return bdpfl.attention(answers) if kind == "attention" else bdpfl.gradcam(task, p, blocks[0], answers, y)

    gap = (maps(private) - maps(shared)).square().sum(-1)
    assert float(gap.max()) > 0 and torch.allclose(maps(private).norm(dim=1), torch.ones(len(x), dtype=x.dtype))
    assert not tree.same(other.state["model"], toy.simulate(ALONE, rounds=2, **work).state["model"])


@pytest.mark.parametrize(("lam", "mu"), [(0.7, 0.0), (0.3, 0.9)])
def test_two_rounds_by_hand(hand: Any, lam: float, mu: float) -> None:
    """Each side's cross-entropy, divergence and distance of maps; what is the other's is constant. One block: beta = 2 / 3."""
    method = {"name": "bdpfl", "lam": lam, "mu": mu}
    done = toy.simulate(method, rounds=2, **{**hand.WORK, "federation": {"per_round": None}})
    model = {n: p.clone() for n, p in done.initial["model"].items()}
    own = {c: dict(model) for c in range(12)}

    def side(mine: Any, other: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        answers, there = hand.logits(other, x).detach(), _map(hand.features(other, x).detach())

        def loss(p: Any) -> torch.Tensor:
            gap = (_map(hand.features(p, x)) - there).square().sum(1).mean()
            return hand.loss(p, x, y) + lam * _kl(answers, hand.logits(p, x)) + mu * 2 / 3 * gap

        return hand.descend(mine, loss, steps=1)

    for _ in range(2):
        updates, sizes = [], []
        for c in range(12):
            x, y = hand.data(done.fed, c)
            w, p = dict(model), own[c]
            for _ in range(hand.STEPS):
                w, p = side(w, p, x, y), side(p, w, x, y)
            own[c] = p
            updates.append(tree.sub(w, model))
            sizes.append(len(y))
        model = tree.add(model, hand.mean(updates, sizes))
    hand.same(done.state["model"], model)
    hand.same(done.clients()["3"]["private"], own[3])


def _map(h: torch.Tensor) -> torch.Tensor:
    return h**2 / (h**2).norm(dim=1, keepdim=True)


def _kl(other: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    p, q = other.log_softmax(-1), mine.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


def test_weights_and_maps_by_hand() -> None:
    assert bdpfl.depth_weights(3, 0.5) == pytest.approx([0.6667, 0.5, 0.4], abs=1e-4)
    assert bdpfl.depth_weights(3, 0.0) == [1.0, 1.0, 1.0]
    a, b = (bdpfl.unit(torch.tensor([m])) for m in ([3.0, 4.0], [0.0, 5.0]))
    assert a[0].tolist() == pytest.approx([0.6, 0.8]) and b[0].tolist() == pytest.approx([0.0, 1.0])
    assert float((a - b).square().sum()) == pytest.approx(0.4)
    assert bdpfl.unit(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]
    pictures = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # two channels of 1 x 2: squares sum to 1, 4
    assert bdpfl.attention(pictures)[0].tolist() == pytest.approx([1 / 17**0.5, 4 / 17**0.5])


def test_success_counts_no_row_of_the_target_class() -> None:
    """A model that always says the target has success 1; one that does not see the mark and is right otherwise 0."""
    attack = {"kind": "trigger", "clients": 2, "target": 1}
    done = toy.simulate(ALONE, rounds=1, attacks=[attack], federation={"groups": {"kind": "none"}})
    f = done.fed.federation
    assert f.backdoor is not None and len(f.backdoor.rows)
    assert (f.arrays["y"][f.backdoor.rows] == 1).all()
    honest = [c for c in range(12) if len(f.backdoor[c])]
    truth = {c: int((f.arrays["y"][f.test[c]] != 1).sum()) for c in honest}
    assert {c: len(f.backdoor[c]) for c in honest} == truth and trigger.Trigger.marks
    model = done.state["model"]
    always = {n: torch.zeros_like(p) for n, p in model.items()}
    always["head.bias"][1] = 1.0
    for p in done.clients().values():
        p["private"].update(always)
    scored = done.fed.task.metrics(always, done.fed.task.batch({n: f.arrays[n][f.backdoor.rows] for n in "xy"}))
    assert float(scored["accuracy"].mean()) == 1.0
