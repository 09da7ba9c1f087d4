"""FlexLoRA: the best pair of the mean product, held against a dense singular value decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("weight", ["examples", "one"])
def test_the_product_is_the_truncated_mean_product(on_bert: OnBert, weight: str) -> None:
    method = {"name": "flexlora", "weight": weight}
    done = toy.simulate(method, rounds=2, dtype="float64", executor="vmap", kind=Watched, **on_bert({}))
    old = toy.simulate(method, rounds=1, dtype="float64", executor="vmap", **on_bert({})).state["model"]
    new, got = done.state["model"], done.fed.got[-1]
    p = (got.examples if weight == "examples" else torch.ones(len(got))).numpy()
    tail = whole = 0.0
    for n in lora.pairs(old):
        each = [(old[n.b] + d[n.b]).numpy() @ (old[n.a] + d[n.a]).numpy() for d in tree.unstack(got.stacked("delta"))]
        u, s, v = np.linalg.svd(sum(w * x for w, x in zip(p / p.sum(), each, strict=True)))
        np.testing.assert_allclose((new[n.b] @ new[n.a]).numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
        there = (s[:2] > 1e-12).sum()
        np.testing.assert_allclose((new[n.a] @ new[n.a].T).numpy()[:there, :there], np.eye(there), atol=1e-12)
        assert torch.equal(new[n.a][there:], old[n.a][there:]) and not new[n.b][:, there:].any()
        tail, whole = tail + (s[2:] ** 2).sum(), whole + (s**2).sum()
    assert tail > 1e-6 * whole  # something is cut off
    assert done.rows[1]["lora/gap"] == pytest.approx((tail / whole) ** 0.5, rel=1e-4)


def test_small_directions_of_a_wide_layer_are_kept() -> None:
    """Singular values of 1 and 1e-4 in float32, 4096 wide; the third is the clients' rounding."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 3, generator=g, dtype=torch.float64))[0] for n in (48, 4096))
    b, a = u * torch.tensor([1.0, 1e-4, 1e-7]), v.T
    left, right = lora.best_pair(b, a, torch.ones(3, 4096))
    far = torch.linalg.norm(left.double() @ right.double() - b @ a)
    assert left.dtype == torch.float32 and float(far) < 1e-6 * float(lora.norm(b, a))
    np.testing.assert_allclose(left.norm(dim=0)[:2], [1.0, 1e-4], rtol=1e-5)
    assert not left[:, 2].any() and torch.equal(right[2], torch.ones(4096))


def test_one_client_keeps_its_product(on_bert: OnBert) -> None:
    done = toy.simulate("flexlora", rounds=1, dtype="float64", **on_bert({**WHOLE, "federation": {"per_round": 1}}))
    want = descend(done.fed, done.fed.drawn[0].ids[0], done.initial["model"], lambda n: True, 3, 0.5)
    for n in lora.pairs(want):
        torch.testing.assert_close(
            done.state["model"][n.b] @ done.state["model"][n.a], want[n.b] @ want[n.a], rtol=1e-9, atol=1e-13
        )
    assert all(torch.allclose(done.state["model"][n], want[n], rtol=1e-9) for n in done.fed.task.head)


def test_only_the_products_count() -> None:
    """(B_i M, M^-1 A_i) in place of one client's (B_i, A_i) changes nothing; the mean of the factors it changes."""
    g = torch.Generator().manual_seed(0)
    b, a = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((3, 7, 2), (3, 2, 5)))
    m = torch.randn(2, 2, generator=g, dtype=torch.float64)
    b2, a2 = b.clone(), a.clone()
    b2[0], a2[0] = b[0] @ m, torch.linalg.inv(m) @ a[0]

    def best(b: Any, a: Any, r: int) -> Any:
        return lora.best_pair(b.transpose(0, 1).reshape(7, 6), a.reshape(6, 5), torch.ones(r, 5, dtype=torch.float64))

    for x, y in zip(best(b, a, 2), best(b2, a2, 2), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(b.mean(0) @ a.mean(0), b2.mean(0) @ a2.mean(0))
    exact = torch.einsum("kmr,krn->mn", b, a)
    for r in (5, 6):  # a rank that the mean has, and one that no matrix of that size has
        left, right = best(b, a, r)
        assert left.shape == (7, r) and right.shape == (r, 5)
        torch.testing.assert_close(left @ right, exact, rtol=1e-10, atol=1e-10)
        assert torch.equal(right[5:], torch.ones(r - 5, 5, dtype=torch.float64)) and not left[:, 5:].any()
    left, right = best(0 * b, a, 2)
    assert not left.any() and torch.equal(
        right, torch.ones(2, 5, dtype=torch.float64)
    )  # nothing learnt, nothing changed
