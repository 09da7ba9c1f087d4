"""FRL: votes by hand and in NumPy, and what never changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods import frl
from tests import toy
from tests.configs import problems, the_problem

WORK = {"local": {"optimizer": {"lr": 0.4, "momentum": 0.9, "weight_decay": 1e-4}}}


def edges(t: Any) -> dict[str, torch.Tensor]:
    return {n: x for n, x in t.items() if x.dim() > 1}


def test_a_vote_by_hand() -> None:
    """Ranks 0 1 2 3, 1 0 2 3 and 3 1 0 2 add to 4 2 4 8: edge 1 is least, then 0 before 2, then 3."""
    scores = torch.tensor([[0.4, 0.1], [0.3, 0.2]])
    counted = torch.tensor([[4.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    assert frl.vote(scores, counted).tolist() == torch.tensor([[0.2, 0.1], [0.3, 0.4]]).tolist()
    assert frl.ranks(scores).tolist() == [[3, 0], [2, 1]]
    assert frl.top(scores, 0.5).tolist() == [[1, 0], [1, 0]]


def test_ranks_invert_the_order() -> None:
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    order, rank = torch.argsort(x.flatten()), frl.ranks(x).flatten()
    assert torch.equal(rank[order], torch.arange(63)) and torch.equal(torch.argsort(rank), order)


def test_scores_are_always_the_same_numbers_and_weights_never_move() -> None:
    done = toy.simulate("frl", rounds=3, **WORK)
    for n, z in edges(done.initial["scores"]).items():
        assert torch.equal(done.state["scores"][n].flatten().sort().values, z.flatten().sort().values), n
        assert not torch.equal(done.state["scores"][n], z)
        mask = done.state["model"][n] != 0
        assert int(mask.sum()) == z.numel() - int(0.5 * z.numel())
        w = done.state["weights"][n]
        assert torch.equal(done.state["model"][n], torch.where(mask, w, 0.0)) and float(w.abs().min()) == float(
            w.abs().max()
        )
    assert tree.same(done.state["weights"], done.initial["weights"])


def test_one_client_is_its_own_ranking() -> None:
    done = toy.simulate("frl", rounds=1, federation={"per_round": 1}, **WORK)
    client, shared = done.fed.drawn[0].ids[0], {n: done.initial[n] for n in ("scores", "weights")}
    done.fed.begin(1)
    mine = done.fed.ask(done.fed.method.train, [client], shared=shared).gather("ranks")[client]
    for n, x in edges(done.state["scores"]).items():
        assert torch.equal(frl.ranks(x), mine[n]), n


def test_a_round_in_numpy(hand: Any) -> None:
    """Full batches and plain SGD: scores move against w times the masked network's gradient; ranks are added, scores handed out anew."""
    done = toy.simulate("frl", rounds=1, **hand.WORK)
    first = {n: {k: v.numpy() for k, v in done.initial[n].items()} for n in ("scores", "weights")}
    summed = {n: np.zeros(s.size, np.int64) for n, s in first["scores"].items()}

    def network(s: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        out = {}
        for n, w in first["weights"].items():
            mask = np.zeros(w.size)
            mask[np.argsort(s[n].ravel(), kind="stable")[w.size - (w.size - w.size // 2) :]] = 1
            out[n] = torch.tensor(w * mask.reshape(w.shape) if w.ndim > 1 else w)
        return out

    for client in done.fed.drawn[0].ids:
        x, y = hand.data(done.fed, client)
        s = {n: v.copy() for n, v in first["scores"].items()}
        for _ in range(hand.STEPS):
            p = {n: v.requires_grad_() for n, v in network(s).items()}
            slopes = torch.autograd.grad(hand.loss(p, x, y), list(p.values()))
            for (n, w), g in zip(first["weights"].items(), slopes, strict=True):
                s[n] = s[n] - hand.LR * w * g.numpy()
        for n, v in s.items():
            summed[n] += np.argsort(np.argsort(v.ravel(), kind="stable"), kind="stable")
    for n, z in first["scores"].items():
        if z.ndim > 1:
            wanted = np.zeros(z.size)
            wanted[np.argsort(summed[n], kind="stable")] = np.sort(z.ravel())
            assert np.array_equal(done.state["scores"][n].numpy().ravel(), wanted), n


def test_a_ranking_costs_its_bits() -> None:
    """128 edges of 7 bits and 64 of 6: 160 bytes each way; the weights come from a seed."""
    done = toy.simulate("frl", rounds=1, **WORK)
    n = len(done.fed.drawn[0].ids)
    assert done.rows[0]["bytes/down"] == 160 * n and done.rows[0]["bytes/up"] - 160 * n in (0, 4 * n, 8 * n)


def test_reversed_rankings_of_some_leave_the_others_vote() -> None:
    """The attack's ranks are n - 1 minus the honest ones, so that one honest and one reversed client cancel."""
    attacks = [{"kind": "rank_reversal", "clients": [0]}]
    done = toy.simulate("frl", rounds=1, attacks=attacks, **WORK)
    shared = {n: done.initial[n] for n in ("scores", "weights")}
    done.fed.begin(1)
    sent = done.fed.ask(done.fed.method.train, [0], shared=shared).gather("ranks")[0]
    honest = toy.simulate("frl", rounds=1, **WORK)
    honest.fed.begin(1)
    own = honest.fed.ask(honest.fed.method.train, [0], shared=shared).gather("ranks")[0]
    for n, r in edges(own).items():
        assert torch.equal(sent[n], r.numel() - 1 - r), n


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"transforms": [{"kind": "topk", "fraction": 0.1}]},
            "transforms: topk found, but clients of frl send rankings",
        ),
        (
            {"attacks": [{"kind": "sign", "clients": 0.2}]},
            "attacks.0.kind: sign found, after which rankings are none",
        ),
        (
            {"local": {"privacy": {"norm": 1.0, "noise_multiplier": 1.0}}},
            "local.privacy: found, but frl sends rankings",
        ),
    ],
)
def test_what_is_no_ranking_is_refused(changes: dict[str, Any], said: str) -> None:
    assert the_problem(method="frl", **changes).startswith(said)
    assert any("aggregate.kind" in p for p in problems(method="frl", aggregate="median"))
