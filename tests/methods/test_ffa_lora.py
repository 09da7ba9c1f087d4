"""FFA-LoRA never moves A, so the mean of B is exact; A never travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rayfed import tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def test_a_is_the_first_draw_for_ever_and_the_mean_is_exact(on_bert: OnBert) -> None:
    done = toy.simulate("ffa_lora", dtype="float64", executor="vmap", kind=Watched, **on_bert({}))
    first, last = done.initial["model"], done.state["model"]
    before = toy.simulate("ffa_lora", rounds=1, dtype="float64", executor="vmap", **on_bert({})).state["model"]
    got = done.fed.got[-1]
    sent = got.stacked("delta")
    p = got.examples / got.examples.sum()
    for n in lora.pairs(first):
        assert torch.equal(last[n.a], first[n.a]) and not torch.equal(last[n.b], before[n.b])
        exact = sum(w * (before[n.b] + d) @ first[n.a] for w, d in zip(p, sent[n.b], strict=True))
        torch.testing.assert_close(last[n.b] @ last[n.a], exact, rtol=1e-12, atol=1e-14)


def test_what_travels_is_b_and_the_head(on_bert: OnBert) -> None:
    done = toy.simulate("ffa_lora", rounds=1, executor="vmap", **on_bert({}))
    numbers = 2 * 16 * 2 + 16 * 3 + 3  # B (16, 2) of query and value, the head
    assert done.rows[0]["bytes/up"] == 7 * (4 * numbers + 8) and done.rows[0]["bytes/down"] == 7 * 4 * numbers


def test_a_client_trains_b_and_the_head_alone(on_bert: OnBert) -> None:
    done = toy.simulate("ffa_lora", rounds=1, dtype="float64", **on_bert({**WHOLE, "federation": {"per_round": 1}}))
    (client,) = done.fed.drawn[0].ids
    want = descend(done.fed, client, done.initial["model"], lambda n: not lora.is_a(n), 3, 0.5)
    went = float(tree.norm(tree.sub(want, done.initial["model"])))
    assert went > 0.01 and float(tree.norm(tree.sub(done.state["model"], want))) < 1e-9 * went
