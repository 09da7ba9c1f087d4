"""FedLD: without its term FedAvg to the bit; the term and its gradient in NumPy; the server's rule by config."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from tests import toy


def test_without_the_margin_it_is_fedavg() -> None:
    a, b = (
        toy.simulate(m, executor="vmap") for m in ({"name": "fedld", "margin": 0.0, "weight": "examples"}, "fedavg")
    )
    assert tree.same(a.state, b.state)


def margin_gradient(plain: Any, p: np.ndarray, x: np.ndarray, per: str) -> np.ndarray:
    """The gradient of log(1 + ||P||_F^2) by the weights: dS/dz_bj = 2 p_bj (p_bj - sum_c p_bc^2)."""
    probs = np.exp(plain.log_probs(p, x))
    size = (probs**2).sum()
    slope = 2 * probs * (probs - (probs**2).sum(1, keepdims=True))
    if per == "example":
        size, slope = size / len(x), slope / len(x)
    slope /= 1 + size
    return np.concatenate([(slope.T @ x).ravel(), slope.sum(0)])


@pytest.mark.parametrize("per", ["batch", "example"])
def test_two_rounds_in_numpy(plain: Any, per: str) -> None:
    done = toy.simulate({"name": "fedld", "margin": 0.3, "per": per}, **plain.WORK)
    p = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        after = []
        for c in draw.ids:
            x, y = plain.data(done.fed, c)
            w = p
            for _ in range(plain.STEPS):
                w = w - plain.LR * (plain.gradient(w, x, y) + 0.3 * margin_gradient(plain, w, x, per))
            after.append(w - p)
        p = p + np.mean(after, axis=0)
    np.testing.assert_allclose(plain.vector(done.state["model"]), p, atol=1e-12)


def test_of_even_predictions_the_term_is_that_of_the_cards_invariant(plain: Any) -> None:
    """Uniform P: ||P||_F^2 = B / C, where no logit can lower it."""
    x = np.random.default_rng(0).normal(size=(6, 8))
    assert np.abs(margin_gradient(plain, np.zeros(36), x, "batch")).max() < 1e-15
    assert (np.exp(plain.log_probs(np.zeros(36), x)) ** 2).sum() == pytest.approx(6 / 4)


def test_a_padded_batch_counts_its_real_rows(plain: Any) -> None:
    """Clients of 4 to 37 examples share a cohort: `loop`, which does not pad, gives the same."""
    loop, vmap = (
        toy.simulate({"name": "fedld", "margin": 0.3}, **{**plain.WORK, "executor": e, "resources": {"cohort": 7}})
        for e in ("loop", "vmap")
    )
    np.testing.assert_allclose(plain.vector(loop.state["model"]), plain.vector(vmap.state["model"]), atol=1e-12)


def test_the_papers_server_is_a_rule_of_aggregation() -> None:
    """In round 1 it is the plain mean, later another one; n_i has no effect."""
    first = [toy.simulate("fedld", executor="vmap", rounds=1, aggregate=a).state for a in ("mean", "principal")]
    assert all(np.allclose(x, y, atol=1e-6) for x, y in zip(*(tree.values(s) for s in first)))
    later = [toy.simulate("fedld", executor="vmap", aggregate=a).state for a in ("mean", "principal")]
    assert float(tree.norm(tree.sub(*later))) > 1e-3
