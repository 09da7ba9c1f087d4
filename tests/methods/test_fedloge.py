"""FedLoGe: the fixed head, realigned norms, and rounds by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rayfed.methods._bases.simplex import sparse_simplex
from rayfed.methods.fedloge import FedLoGe
from tests import toy

SHORT = {"name": "fedloge", "fixed_steps": 50}


def test_the_fixed_head() -> None:
    """floor(0.6 * 4 * 16) = 38 zeros, whatever Adam does; its steps bring norms to 0.1 and push classes apart; none leave a simplex."""
    task = toy.simulate("fedavg", rounds=1).fed.task
    drawn, made = (sparse_simplex(task, 3, zeros=0.6, norm=0.1, steps=n, lr=1e-3) for n in (0, 1500))
    assert int((drawn == 0).sum()) == int((made == 0).sum()) == 38 and torch.equal(drawn == 0, made == 0)
    torch.testing.assert_close(made.norm(dim=-1), torch.full((4,), 0.1, dtype=made.dtype), rtol=0, atol=1e-2)

    def closest(m):
        unit = F.normalize(m, dim=-1)
        return (unit @ unit.T).fill_diagonal_(-1).amax(-1).mean()

    assert closest(made) < closest(drawn)
    whole = sparse_simplex(task, 3, zeros=0.0, norm=1.0, steps=0, lr=1e-4)
    torch.testing.assert_close(whole @ whole.T, (4 / 3) * (torch.eye(4, dtype=whole.dtype) - 0.25), rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_heads_reach_no_backbone(monkeypatch, clip: float | None) -> None:
    """Other private heads: the same backbone, the same auxiliary head, to the bit."""
    same = {"executor": "vmap", "rounds": 2, "local": {"clip": clip}}
    plain = toy.simulate(SHORT, **same)
    monkeypatch.setattr(FedLoGe, "own_init", lambda self, task, client, key: {"head": torch.ones(4, 16)})
    other = toy.simulate(SHORT, **same)
    assert all(torch.equal(p, other.state["model"][n]) for n, p in plain.state["model"].items())
    assert torch.equal(plain.state["auxiliary"], other.state["auxiliary"])
    assert all(not torch.equal(s["head"], other.clients()[c]["head"]) for c, s in plain.clients().items())


def test_rounds_and_served_models_by_hand(hand) -> None:
    done = toy.simulate({**SHORT, "norm": 1.3}, rounds=3, **hand.WORK)
    fixed, first = done.initial["fixed"], done.fed.task.initial
    model = {n: p for n, p in first.items() if n not in hand.HEAD} | {"aux": first["head.weight"]}
    own: dict[int, torch.Tensor] = {}
    for draw in done.fed.drawn:
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)

            def loss(p, x=x, y=y):
                h = hand.features(p, x)
                return sum(
                    F.cross_entropy(z @ w.T, y) for z, w in ((h, fixed), (h.detach(), p["aux"]), (h.detach(), p["own"]))
                )

            after = hand.descend({**model, "own": own.get(c, first["head.weight"])}, loss)
            own[c] = after["own"]
            updates.append({k: after[k] - model[k] for k in model})
            n.append(len(y))
        model = {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    a = model["aux"]
    torch.testing.assert_close(done.state["auxiliary"], a, rtol=0, atol=1e-12)
    assert torch.equal(done.state["fixed"], fixed)
    norms = done.state["model"]["head.weight"].norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 1.3), rtol=0, atol=1e-12)
    assert not done.state["model"]["head.bias"].any()
    for row in done.scores()[1]:
        x, y = hand.data(done.fed, row["client"], "test")
        head = a * own.get(row["client"], first["head.weight"]).norm(dim=-1, keepdim=True)
        want = F.cross_entropy(hand.features(model, x) @ head.T, y)
        assert row["loss"] == pytest.approx(float(want), abs=1e-12)
