"""The largest entries."""

from __future__ import annotations

import torch

from tests import toy
from tests.unit.transform.alone import made, there_and_back, vector


def test_the_largest_are_sent_and_the_others_are_zero() -> None:
    v = torch.tensor([1.0, -5.0, 0.5, 4.0, -2.0])
    sent, back, _ = there_and_back(made("topk", fraction=0.4), v)
    assert torch.equal(back, torch.tensor([0.0, -5.0, 0.0, 4.0, 0.0])) and sorted(sent.tolist()) == [-5.0, 4.0]


def test_its_bytes_are_those_of_values_and_indices() -> None:
    assert made("topk", fraction=0.01).size(1000, 32, ()) == (10, 32, 320)
    assert made("topk", fraction=1e-9).size(1000, 32, ()) == (1, 32, 32)


def test_all_of_it_is_the_identity() -> None:
    assert torch.equal(there_and_back(made("topk", fraction=1.0), vector())[1], vector())
    whole, plain = toy.simulate(transforms=[{"kind": "topk", "fraction": 1.0}]), toy.simulate()
    assert all(torch.equal(x, plain.state["model"][n]) for n, x in whole.state["model"].items())


def test_nothing_is_lost_with_feedback() -> None:
    """What a client has sent over its visits and what it still holds is the sum of its updates."""
    sent, own = torch.zeros(212), None
    from rayfed.transform.chain import Asked

    fed = toy.make_fed(toy.config(transforms=[{"kind": "topk", "fraction": 0.05}]))
    chain = fed.dispatch.chain
    assert chain is not None
    own = {"topk": {"left": {"delta": torch.zeros(1, 212)}}}
    total = torch.zeros(212)
    for r in range(5):
        update = {
            n: torch.randn(1, *p.shape, generator=torch.Generator().manual_seed(r))
            for n, p in fed.task.params_like.items()
        }
        total += torch.cat([x.reshape(-1) for x in update.values()])
        made_ = chain.encode({"delta": update}, own, [3], Asked({}), r, {})
        sent += torch.cat([x.reshape(-1) for x in made_.parts["delta"].values()])
        own = made_.own
    assert torch.allclose(sent + own["topk"]["left"]["delta"][0], total, atol=1e-5)
    assert own["topk"]["left"]["delta"].abs().sum() > 1
