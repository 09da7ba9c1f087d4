"""Pairs (B, A) at the server against dense products: norms, the best pair of a rank, the gap to a mean product."""

from __future__ import annotations

import numpy as np
import torch

from rayfed.adapters import lora
from rayfed.adapters.lora import Names

A, B = "net.query.lora_A.default.weight", "net.query.lora_B.default.weight"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairs_are_the_adapted_layers() -> None:
    assert lora.pairs([B, A, "head.weight"]) == [Names(B, A)]
    assert lora.is_a(A) and lora.is_b(B) and not lora.is_a(B) and not lora.is_b("head.weight")
    assert lora.select({A: 1, B: 2, "head.weight": 3}, lora.is_b) == {B: 2}


def test_a_norm_is_that_of_the_dense_product() -> None:
    b, a = drawn(5, 3), drawn(3, 7, seed=1)
    np.testing.assert_allclose(lora.norm(b, a), torch.linalg.norm(b @ a), rtol=1e-12)


def test_the_best_pair_is_the_truncated_svd() -> None:
    b, a = drawn(6, 4), drawn(4, 9, seed=1)
    left, right = lora.best_pair(b, a, drawn(2, 9, seed=2))
    u, s, v = np.linalg.svd((b @ a).numpy(), full_matrices=False)
    np.testing.assert_allclose(left @ right, (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
    at = right.abs().argmax(1, keepdim=True)
    assert bool((right.gather(1, at) > 0).all())


def test_directions_that_are_missing_keep_their_old_row() -> None:
    b, a, old = drawn(6, 1), drawn(1, 9, seed=1), drawn(3, 9, seed=2)
    left, right = lora.best_pair(b, a, old)
    np.testing.assert_allclose(left @ right, b @ a, atol=1e-12)
    assert not left[:, 1:].any() and torch.equal(right[1:], old[1:])


def test_the_gap_is_relative_to_the_exact_product() -> None:
    n, exact = Names(B, A), (drawn(6, 4), drawn(4, 9, seed=1))
    params = {B: drawn(6, 2, seed=2), A: drawn(2, 9, seed=3)}
    dense = exact[0] @ exact[1]
    want = torch.linalg.norm(dense - params[B] @ params[A]) / torch.linalg.norm(dense)
    np.testing.assert_allclose(lora.gap({n: exact}, params), want, rtol=1e-9)
    assert lora.gap({n: (torch.zeros(6, 4), torch.zeros(4, 9))}, params) == 0.0
