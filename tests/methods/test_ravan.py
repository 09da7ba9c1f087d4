"""Ravan: cores between frozen factors; their mean is the mean of the clients' layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed.adapters import lora
from rayfed.errors import ConfigError
from rayfed.methods.ravan import multiplied
from tests import toy
from tests.tiny import Watched

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_the_layer_is_the_mean_of_the_clients_layers(on_bert: OnBert) -> None:
    before = toy.simulate("ravan", rounds=1, dtype="float64", **on_bert({})).state
    done = toy.simulate("ravan", rounds=2, dtype="float64", kind=Watched, **on_bert({}))
    method, task, got = done.fed.method, done.fed.task, done.fed.got[-1]
    fixed, p = method.factors(task), got.examples / got.examples.sum()
    for n, (b, a) in fixed.items():
        products = []
        for d in got.stacked("delta")[n.a]:
            core = before["cores"][n.a] + d
            products.append(b @ torch.block_diag(*core) @ a)
        exact = sum(w * x for w, x in zip(p, products, strict=True))
        torch.testing.assert_close(done.state["model"][n.b] @ done.state["model"][n.a], exact, rtol=1e-10, atol=1e-13)
        assert exact.norm() > 1e-3


def test_it_starts_at_the_pretrained_network_and_the_factors_never_move(on_bert: OnBert) -> None:
    done = toy.simulate("ravan", dtype="float64", **on_bert({}))
    fixed = done.fed.method.factors(done.fed.task)
    for n, (b, a) in fixed.items():
        assert not done.initial["model"][n.b].any() and torch.equal(done.state["model"][n.a], a)
        np.testing.assert_allclose((b.T @ b).numpy(), np.eye(2), atol=1e-12)
        np.testing.assert_allclose((a @ a.T).numpy(), np.eye(2), atol=1e-12)
    other = toy.simulate({"name": "ravan", "start": "normal"}, rounds=1, dtype="float64", **on_bert({}))
    drawn = other.fed.method.factors(other.fed.task)
    assert all(not torch.allclose(b.T @ b, torch.eye(2).double()) for b, _ in drawn.values())


def test_what_travels_is_the_cores_and_the_head(on_bert: OnBert) -> None:
    done = toy.simulate({"name": "ravan", "heads": 1}, rounds=1, **on_bert({}))
    numbers = 2 * 2 * 2 + 16 * 3 + 3  # H (1, 2, 2) of query and value, the head
    assert done.rows[0]["bytes/up"] == 7 * (4 * numbers + 8) and done.rows[0]["bytes/down"] == 7 * 4 * numbers


def test_by_hand() -> None:
    """Two heads of width 1, H = (2, 3), B = [[1, 0], [0, 1]], A = [[1, 1], [1, -1]]: 2 b_1 a_1 + 3 b_2 a_2."""
    n = lora.Names("b", "a")
    one, a = torch.eye(2), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    made = multiplied({n: (one, a)}, {"a": torch.tensor([[[2.0]], [[3.0]]])})
    assert (made["b"] @ made["a"]).tolist() == [[2.0, 2.0], [3.0, -3.0]]


def test_heads_divide_the_rank(on_bert: OnBert) -> None:
    with pytest.raises(ConfigError, match=r"method.heads: 3 found, allowed with adapter.rank: 2: its divisors 1, 2"):
        toy.config({"name": "ravan", "heads": 3}, **on_bert({}))
