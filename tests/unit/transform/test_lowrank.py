"""Matrices as products of two thin ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.unit.transform.alone import made, pieces, there_and_back, vector


def start(t: Any, of: Any) -> Any:
    return t.own_init(of)


def test_a_matrix_of_that_rank_is_sent_exactly_and_small_tensors_whole() -> None:
    t, of = made("lowrank", rank=2), pieces((20,), (12, 4, 5), (3, 3), (7,))
    low = (vector(24, 1).reshape(12, 2) @ vector(40, 2).reshape(2, 20)).reshape(-1)
    v = torch.cat([vector(20, 3), low, vector(9, 4), vector(7, 5)])
    sent, back, _ = there_and_back(t, v, own=start(t, of), of=of)
    assert torch.allclose(back, v, atol=1e-12)
    assert len(sent) == 20 + 2 * (12 + 20) + 9 + 7 == t.size(len(v), 64, of)[0]


def test_one_step_of_power_iteration_by_numpy() -> None:
    t, of = made("lowrank", rank=3), pieces((15, 10))
    v = vector(150)
    own = start(t, of)
    _, back, after = there_and_back(t, v, own=own, of=of)
    m, q = v.numpy().reshape(15, 10), own["q"]["delta"]["0"].numpy()
    u, _, _ = np.linalg.svd(m @ q, full_matrices=False)
    assert np.allclose(back.numpy().reshape(15, 10), u @ u.T @ m, atol=1e-10)
    assert after["q"]["delta"]["0"].shape == (10, 3)


def test_it_finds_the_best_approximation_of_what_stays() -> None:
    t, of = made("lowrank", rank=2), pieces((15, 10))
    v, own = vector(150), start(t, of)
    for _ in range(60):
        _, back, new = there_and_back(t, v, own=own, of=of)
        own = {**own, **new}
    u, s, w = np.linalg.svd(v.numpy().reshape(15, 10), full_matrices=False)
    assert np.allclose(back.numpy().reshape(15, 10), u[:, :2] * s[:2] @ w[:2], atol=1e-3)


def test_a_column_that_vanished_is_drawn_anew() -> None:
    """A matrix of rank 1 leaves nothing in the second column of Q; the next matrix must not be seen through rounding."""
    t, of = made("lowrank", rank=2), pieces((12, 20))
    own = start(t, of)
    one = (vector(12, 1)[:, None] * vector(20, 2)).reshape(-1)
    own = {**own, **there_and_back(t, one, own=own, of=of)[2]}
    nudged = {**own, "q": {"delta": {"0": own["q"]["delta"]["0"] + 1e-16}}}
    backs = [there_and_back(t, vector(240, 3), own=o, of=of)[1] for o in (own, nudged)]
    assert torch.allclose(*backs, atol=1e-9)
