"""LoRA-FAIR: FedIT's mean with B corrected, held against dense products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from rayfed.methods.lora_fair import LoRAFAIR, corrected
from tests import toy

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def layer() -> tuple[Any, ...]:
    """Three clients' factors by chance: (B', A, D* dense, D* A^T, the pair of D*)."""
    g = torch.Generator().manual_seed(3)
    b, a = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((3, 7, 2), (3, 2, 5)))
    pair = b.transpose(0, 1).reshape(7, 6) / 3, a.reshape(6, 5)
    exact = torch.einsum("kmr,krn->mn", b, a) / 3
    return b.mean(0), a.mean(0), exact, exact @ a.mean(0).T, pair


def test_squares_is_the_ridge_solution() -> None:
    b, a, exact, target, pair = layer()
    for lam in (0.0, 0.3):
        new = corrected(b, a, target, pair, LoRAFAIR.Settings(distance="squares", lam=lam))
        slope = (new @ a - exact) @ a.T + lam * (new - b)  # half the gradient of the objective
        torch.testing.assert_close(slope, torch.zeros(7, 2, dtype=torch.float64), atol=1e-12, rtol=0)
    far = corrected(b, a, target, pair, LoRAFAIR.Settings(distance="squares", lam=1e12))
    torch.testing.assert_close(far, b, atol=1e-9, rtol=0)


def test_cosine_descends_the_dense_objective() -> None:
    b, a, exact, target, pair = layer()

    def objective(new: torch.Tensor, lam: float) -> float:
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), (new @ a).flatten(), 0)
        return float(1 - cosine + lam * (new - b).norm() / b.norm())

    for lam in (0.0, 0.01):
        s = LoRAFAIR.Settings(lam=lam, steps=400)
        new = corrected(b, a, target, pair, s)
        assert objective(new, lam) < objective(b, lam) - 0.05
        free = new.clone().requires_grad_()
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), (free @ a).flatten(), 0)
        (slope,) = torch.autograd.grad(1 - cosine + lam * (free - b).norm() / b.norm(), free)
        assert slope.norm() * b.norm() < 0.02  # a minimum, as near as Adam's last steps come
    stay = corrected(b, a, target, pair, LoRAFAIR.Settings(steps=0))
    assert torch.equal(stay, b)


def test_what_is_right_already_stays_as_it_is() -> None:
    """One client, or several with equal factors: B' A is the mean product, and Adam would leave it."""
    b, a, *_ = layer()
    for clients in (1, 3):
        pair = torch.cat([b / clients] * clients, 1), torch.cat([a] * clients)
        for lam in (0.01, 0.5):
            assert torch.equal(corrected(b, a, pair[0] @ (pair[1] @ a.T), pair, LoRAFAIR.Settings(lam=lam)), b)


def test_of_adams_steps_the_best_counts() -> None:
    """At a rate that leaps over the minimum."""
    b, a, exact, target, pair = layer()

    def objective(new: torch.Tensor) -> float:
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), (new @ a).flatten(), 0)
        return float(1 - cosine + 0.01 * (new - b).norm() / b.norm())

    found = [objective(corrected(b, a, target, pair, LoRAFAIR.Settings(lr=0.8, steps=n))) for n in range(8)]
    assert found == sorted(found, reverse=True) and found[0] == objective(b)


def test_one_client_keeps_its_factors(on_bert: OnBert) -> None:
    more = {"executor": "vmap", **on_bert({"federation": {"per_round": 1}})}
    ours, plain = (toy.simulate(m, **more) for m in ("lora_fair", "fedit"))
    assert tree.same(ours.state, plain.state)


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
def test_without_steps_it_is_fedit_and_with_them_nearer_to_the_mean_product(on_bert: OnBert) -> None:
    more = {"executor": "vmap", "rounds": 2, **on_bert({})}
    plain = toy.simulate({"name": "fedit", "gap": True}, **more)
    still = toy.simulate({"name": "lora_fair", "steps": 0}, **more)
    assert tree.same(still.state, plain.state)
    assert [r["lora/gap"] for r in still.rows] == [r["lora/gap_before"] for r in still.rows]
    assert [r["lora/gap"] for r in still.rows] == [r["lora/gap"] for r in plain.rows]
    ours = toy.simulate({"name": "lora_fair", "distance": "squares"}, **more)
    assert all(r["lora/gap"] < r["lora/gap_before"] for r in ours.rows)
    apart = {
        "executor": "vmap",
        "rounds": 1,
        **on_bert({"local": {"steps": 8}}),
    }  # far enough for the correction to pay
    first = [toy.simulate(m, **apart) for m in ("fedit", "lora_fair")]
    for n in first[0].state["model"]:
        same = torch.equal(first[0].state["model"][n], first[1].state["model"][n])
        assert same != lora.is_b(n)  # only B is corrected
