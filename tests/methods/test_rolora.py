"""RoLoRA: one factor a round, whose mean is exact since the other one is common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_the_factors_take_turns_and_each_mean_is_exact(on_bert: OnBert) -> None:
    states = [
        toy.simulate("rolora", rounds=r, dtype="float64", executor="vmap", kind=Watched, **on_bert({}))
        for r in (1, 2, 3)
    ]
    old = states[0].initial["model"]
    for r, done in enumerate(states, 1):
        new, got = done.state["model"], done.fed.got[-1]
        p = got.examples / got.examples.sum()
        for n in lora.pairs(old):
            moved, still, part = (n.b, n.a, "b") if r % 2 else (n.a, n.b, "a")
            assert torch.equal(new[still], old[still]) and not torch.equal(new[moved], old[moved])
            each = [old[moved] + d for d in got.stacked(part)[moved]]
            products = [x @ old[n.a] if r % 2 else old[n.b] @ x for x in each]
            exact = sum(w * x for w, x in zip(p, products, strict=True))
            torch.testing.assert_close(new[n.b] @ new[n.a], exact, rtol=1e-12, atol=1e-14)
        assert all(not torch.equal(new[n], old[n]) for n in done.fed.task.head)
        old = new


def test_a_client_trains_one_factor_and_the_head(on_bert: OnBert) -> None:
    done = toy.simulate("rolora", dtype="float64", **on_bert({**WHOLE, "federation": {"per_round": 1}}))
    want = done.initial["model"]
    for draw, factor in zip(done.fed.drawn, (lora.is_b, lora.is_a), strict=True):
        want = descend(done.fed, draw.ids[0], want, lambda n, f=factor: f(n) or n in done.fed.task.head, 3, 0.5)
    went = float(tree.norm(tree.sub(want, done.initial["model"])))
    assert went > 0.01 and float(tree.norm(tree.sub(done.state["model"], want))) < 1e-9 * went


@pytest.mark.skipif("ffa_lora" not in methods.names(), reason="compared with ffa_lora, which is not there")
def test_its_first_round_is_that_of_a_frozen_a(on_bert: OnBert) -> None:
    one, other = (toy.simulate(m, rounds=1, **on_bert({})) for m in ("rolora", "ffa_lora"))
    assert tree.same(one.state, other.state)


def test_half_of_it_travels_up(on_bert: OnBert) -> None:
    done = toy.simulate("rolora", **on_bert({}))
    factor, head = 2 * 16 * 2, 16 * 3 + 3
    assert [r["bytes/up"] for r in done.rows] == [7 * (4 * (factor + head) + 8)] * 2
    assert [r["bytes/down"] for r in done.rows] == [7 * 4 * (2 * factor + head)] * 2
