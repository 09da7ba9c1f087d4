"""LoRA-FAIR: FedIT's mean with B corrected, held against dense products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from rayfed.errors import ConfigError
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
        s = LoRAFAIR.Settings(distance="cosine", lam=lam, steps=400)
        scaled = corrected(b, a, target, pair, s)
        assert objective(scaled, 0) < objective(b, 0) - 0.05
        # before it is scaled it is the minimum: of its multiples, that with the least objective
        free = min((c * scaled for c in torch.linspace(0.2, 5, 4801).tolist()), key=lambda y: objective(y, lam))
        free = free.clone().requires_grad_()
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), (free @ a).flatten(), 0)
        (slope,) = torch.autograd.grad(1 - cosine + lam * (free - b).norm() / b.norm(), free)
        assert slope.norm() * b.norm() < 0.02  # a minimum, as close as Adam's last steps come
    stay = corrected(b, a, target, pair, LoRAFAIR.Settings(distance="cosine", steps=0))
    assert torch.equal(stay, b)


def test_the_length_is_that_of_the_mean_product() -> None:
    """A cosine is blind to it. Without lam both distances have one answer, the projection of D* on the span of A's rows."""
    b, a, exact, target, pair = layer()
    projected = exact @ torch.linalg.pinv(a)  # NumPy's way: least squares of Y A = D*
    squares = corrected(b, a, target, pair, LoRAFAIR.Settings(lam=0))
    torch.testing.assert_close(squares, projected, atol=1e-12, rtol=0)
    cosine = corrected(b, a, target, pair, LoRAFAIR.Settings(distance="cosine", lam=0, steps=2000, lr=0.003))
    torch.testing.assert_close(cosine, projected, atol=0.02 * float(projected.norm()), rtol=0)
    assert float((projected @ a).norm()) <= float(exact.norm())
    for lam in (0.0, 0.01, 0.1):
        new = corrected(b, a, target, pair, LoRAFAIR.Settings(distance="cosine", lam=lam)) @ a
        assert float((new * exact).sum()) == pytest.approx(
            float((new * new).sum()), rel=1e-9
        )  # no other length is closer


@pytest.mark.parametrize("apart", [1.0, 0.1, 1e-3])
def test_near_factors_are_corrected_too(apart: float) -> None:
    """By default the residual shrinks however near the factors are; a norm that is not squared holds a cosine's B where it is."""
    g = torch.Generator().manual_seed(5)
    b, a = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((7, 2), (2, 5)))
    bs, as_ = (x + apart * torch.randn((3, *x.shape), generator=g, dtype=torch.float64) for x in (b, a))
    exact, b, a = torch.einsum("kmr,krn->mn", bs, as_) / 3, bs.mean(0), as_.mean(0)
    pair = bs.transpose(0, 1).reshape(7, 6) / 3, as_.reshape(6, 5)
    new = corrected(b, a, exact @ a.T, pair, LoRAFAIR.Settings())
    before, after = ((exact - y @ a).norm() for y in (b, new))
    span = (exact - exact @ torch.linalg.pinv(a) @ a).norm()  # what no B can reach
    assert after < before and after - span < 0.02 * (before - span)
    held = corrected(b, a, exact @ a.T, pair, LoRAFAIR.Settings(distance="cosine"))
    assert torch.equal(held, b) == (apart < 1)
    assert (exact - held @ a).norm() <= before


def test_what_is_right_already_stays_as_it_is() -> None:
    """One client, or several with equal factors: B' A is the mean product, and Adam would leave it."""
    b, a, *_ = layer()
    for clients in (1, 3):
        pair = torch.cat([b / clients] * clients, 1), torch.cat([a] * clients)
        target = pair[0] @ (pair[1] @ a.T)
        for lam in (0.01, 0.5):
            assert torch.equal(corrected(b, a, target, pair, LoRAFAIR.Settings(distance="cosine", lam=lam)), b)
            solved = corrected(b, a, target, pair, LoRAFAIR.Settings(lam=lam))
            torch.testing.assert_close(solved, b, atol=1e-13, rtol=0)


def test_of_adams_steps_the_best_counts() -> None:
    """At a rate that leaps over the minimum."""
    b, a, exact, target, pair = layer()

    def objective(new: torch.Tensor) -> float:
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), (new @ a).flatten(), 0)
        return float(1 - cosine)

    settings = [LoRAFAIR.Settings(distance="cosine", lam=0, lr=0.8, steps=n) for n in range(8)]
    found = [objective(corrected(b, a, target, pair, s)) for s in settings]
    assert found == sorted(found, reverse=True) and found[0] == objective(b) > found[-1]


def test_one_client_keeps_its_factors(on_bert: OnBert) -> None:
    more = {"executor": "vmap", **on_bert({"federation": {"per_round": 1}})}
    plain = toy.simulate("fedit", **more)
    assert tree.same(toy.simulate({"name": "lora_fair", "distance": "cosine"}, **more).state, plain.state)
    solved = toy.simulate("lora_fair", **more)  # of what a mean in float32 rounds off
    torch.testing.assert_close(solved.state["model"], plain.state["model"], rtol=1e-5, atol=1e-7)


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
def test_without_steps_it_is_fedit_and_with_them_closer_to_the_mean_product(on_bert: OnBert) -> None:
    more = {"executor": "vmap", "rounds": 2, **on_bert({})}
    plain = toy.simulate({"name": "fedit", "gap": True}, **more)
    still = toy.simulate({"name": "lora_fair", "distance": "cosine", "steps": 0}, **more)
    assert tree.same(still.state, plain.state)
    assert [r["lora/gap"] for r in still.rows] == [r["lora/gap_before"] for r in still.rows]
    assert [r["lora/gap"] for r in still.rows] == [r["lora/gap"] for r in plain.rows]
    assert [r["lora/corrected"] for r in still.rows] == [0, 0]
    ours = toy.simulate("lora_fair", **more)
    assert all(r["lora/gap"] < r["lora/gap_before"] and r["lora/corrected"] == 1 for r in ours.rows)
    with pytest.raises(ConfigError, match=r"method.steps: 0 found, .* method.distance: cosine"):
        toy.config({"name": "lora_fair", "steps": 0}, **more)
    apart = {
        "executor": "vmap",
        "rounds": 1,
        **on_bert({"local": {"steps": 8}}),
    }  # far enough for the correction to pay
    first = [toy.simulate(m, **apart) for m in ("fedit", "lora_fair")]
    for n in first[0].state["model"]:
        same = torch.equal(first[0].state["model"][n], first[1].state["model"][n])
        assert same != lora.is_b(n)  # only B is corrected
