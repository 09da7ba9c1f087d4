"""FedSVD: B A is the mean product to the bit of its precision, A's rows are orthonormal; without decompositions it is FFA-LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_the_product_is_the_mean_of_the_clients_and_a_orthonormal(on_bert: OnBert) -> None:
    old = toy.simulate("fedsvd", rounds=1, dtype="float64", **on_bert({})).state["model"]
    done = toy.simulate("fedsvd", rounds=2, dtype="float64", kind=Watched, **on_bert({}))
    new, got = done.state["model"], done.fed.got[-1]
    p = got.examples / got.examples.sum()
    for n in lora.pairs(old):
        moved = got.stacked("delta")[n.b]
        exact = sum(w * (old[n.b] + d) @ old[n.a] for w, d in zip(p, moved, strict=True))
        torch.testing.assert_close(new[n.b] @ new[n.a], exact, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose((new[n.a] @ new[n.a].T).numpy(), np.eye(2), atol=1e-12)
        assert not torch.allclose(new[n.a], old[n.a])


@pytest.mark.skipif("ffa_lora" not in methods.names(), reason="compared with ffa_lora, which is not there")
def test_without_decompositions_it_is_ffa_lora(on_bert: OnBert) -> None:
    ours = toy.simulate({"name": "fedsvd", "every": None}, **on_bert({}))
    assert tree.same(ours.state, toy.simulate("ffa_lora", **on_bert({})).state)
    later = toy.simulate({"name": "fedsvd", "every": 3}, **on_bert({}))
    assert tree.same(ours.state, later.state)  # two rounds


def test_a_client_trains_b_and_the_head_alone(on_bert: OnBert) -> None:
    done = toy.simulate("fedsvd", rounds=1, dtype="float64", **on_bert({**WHOLE, "federation": {"per_round": 1}}))
    (client,) = done.fed.drawn[0].ids
    want = descend(done.fed, client, done.initial["model"], lambda n: not lora.is_a(n), 3, 0.5)
    for n in lora.pairs(want):
        made = done.state["model"][n.b] @ done.state["model"][n.a]
        torch.testing.assert_close(made, want[n.b] @ want[n.a], rtol=1e-9, atol=1e-13)
    numbers = 2 * 16 * 2 + 16 * 3 + 3  # B (16, 2) of query and value, the head
    assert done.rows[0]["bytes/up"] == 8 * numbers + 8


def test_by_hand() -> None:
    """B A = [[3, 4], [0, 0]] of one direction: A <- (0.6, 0.8), B <- (5, 0)."""
    b, a = torch.tensor([[1.0], [0.0]]).double(), torch.tensor([[3.0, 4.0]]).double()
    left, right = lora.best_pair(b, a, a)
    np.testing.assert_allclose(left.numpy(), [[5.0], [0.0]], atol=1e-12)
    np.testing.assert_allclose(right.numpy(), [[0.6, 0.8]], atol=1e-12)
