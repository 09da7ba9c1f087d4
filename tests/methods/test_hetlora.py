"""HetLoRA: weights by norm, zero padding, pruning; a whole round held against NumPy and torch's own autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.adapters import lora, ranks
from rayfed.methods.hetlora import padded
from tests import toy
from tests.tiny import WHOLE, Watched

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
MIXED = {1: 0.5, 2: 0.25, 4: 0.25}


def mixed(on_bert: OnBert, alpha: Any = None, rank: Any = MIXED, **more: Any) -> dict[str, Any]:
    adapter = {"kind": "lora", "rank": rank, "alpha": alpha, "targets": ["query", "value"]}
    return on_bert(toy.merge({"adapter": adapter}, more))


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize(
    ("pad", "weight"), [("zero", "norm"), ("rank_wise", "norm"), ("rank_wise", "examples"), ("zero", "one")]
)
def test_factors_are_weighted_by_their_norm(on_bert: OnBert, alpha: float | None, pad: str, weight: str) -> None:
    spec = {"name": "hetlora", "gamma": 0.5, "lam": 0.5, "least": 1, "pad": pad, "weight": weight}
    more = {"executor": "vmap", "dtype": "float64", **mixed(on_bert, alpha, federation={"per_round": None})}
    done: Any = toy.simulate(spec, kind=Watched, **more)
    before = toy.simulate(spec, rounds=1, **more)
    model, new, got = before.state["model"], done.state["model"], done.fed.got[-1]
    held = got.gather("rank")
    deltas = got.gather("delta")

    def factors(c: int) -> dict[str, np.ndarray]:
        """What client c sends, in units of the largest rank's scale."""
        r, out = int(held[c]), {}
        for n, x in model.items():
            whole = (x + deltas[c][n]).numpy().copy()
            if ranks.is_a(n):
                whole[r:] = 0
            if ranks.is_b(n):
                whole[:, r:] = 0
            out[n] = whole
        return out

    sent = {c: factors(c) for c in got.ids}
    norm = {c: sum(np.linalg.norm(f[n.b] @ f[n.a]) ** 2 for n in lora.pairs(model)) ** 0.5 for c, f in sent.items()}
    if weight == "norm":
        np.testing.assert_allclose([float(got.gather("norm")[c]) for c in got.ids], list(norm.values()), rtol=1e-9)
    n_i = dict(zip(got.ids, got.examples.tolist(), strict=True))
    w = {"norm": norm, "examples": n_i, "one": dict.fromkeys(got.ids, 1.0)}[weight]
    q = {c: v / sum(w.values()) for c, v in w.items()}
    assert sum(q.values()) == pytest.approx(1) and (max(q.values()) > 1.2 * min(q.values())) == (weight != "one")
    for n, x in new.items():
        total = sum(q[c] * sent[c][n] for c in got.ids)
        for k in range(4) if ranks.is_a(n) or ranks.is_b(n) else ():
            at = k if ranks.is_a(n) else (slice(None), k)
            share = sum(q[c] for c in got.ids if held[c] > k)
            total[at] = total[at] / share if pad == "rank_wise" and share else total[at]
            if not share:
                total[at] = model[n].numpy()[at]
        np.testing.assert_allclose(x, total, atol=1e-12)


def test_equal_ranks_and_norms_are_fedit_with_equal_weights(on_bert: OnBert) -> None:
    """By hand: two clients of rank 2 with norms alike, one number; and clients of rank 1 and 2 with q = (1/4, 3/4)."""
    a, b = "x.lora_A.default.weight", "x.lora_B.default.weight"
    model = {a: torch.tensor([[1.0], [10.0]]), b: torch.tensor([[2.0, 20.0]]), "head": torch.tensor([5.0])}
    delta = {a: torch.tensor([[0.5], [1.0]]), b: torch.tensor([[0.0, 4.0]]), "head": torch.tensor([1.0])}
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert tree.same(padded(model, delta, torch.tensor([2, 2]), half, "zero"), tree.add(model, delta))
    assert tree.same(padded(model, delta, torch.tensor([2, 2]), half, "rank_wise"), tree.add(model, delta))
    q, held = torch.tensor([0.25, 0.75], dtype=torch.float64), torch.tensor([1, 2])
    zero = padded(model, delta, held, q, "zero")
    assert zero[a].flatten().tolist() == [1.5, 8.5] and zero[b].flatten().tolist() == [2.0, 19.0]
    wise = padded(model, delta, held, q, "rank_wise")
    assert wise[a].flatten().tolist() == pytest.approx([1.5, 10 + 1 / 0.75]) and wise["head"].tolist() == [6.0]
    for pad in ("zero", "rank_wise"):  # a row that nobody holds stays
        alone = padded(model, {n: 0 * x for n, x in delta.items()}, torch.tensor([1, 1]), half, pad)
        assert tree.same(alone, model)

    plain = {"name": "hetlora", "gamma": 1.0, "lam": 0.0}
    one = {"federation": {"per_round": 1}}
    ours, fedit = (
        toy.simulate(m, dtype="float64", executor="vmap", **mixed(on_bert, rank=2, **one)) for m in (plain, "fedit")
    )
    gap = float(tree.norm(tree.sub(ours.state["model"], fedit.state["model"])))
    assert gap < 1e-9 * float(tree.norm(tree.sub(fedit.state["model"], fedit.initial["model"])))


def test_rbla_is_the_mean_by_examples_over_the_clients_that_have_a_row(on_bert: OnBert) -> None:
    """sum p_i A_i[k] / sum p_i over the clients of rank above k; nobody prunes; 8 bytes of n_i and none of a norm."""
    spec = {"name": "hetlora", "pad": "rank_wise", "weight": "examples", "gamma": 1.0}
    more = {"executor": "vmap", "dtype": "float64", **mixed(on_bert, federation={"per_round": None})}
    done: Any = toy.simulate(spec, kind=Watched, rounds=1, **more)
    first, got, drawn = done.initial["model"], done.fed.got[-1], done.fed.task.ranks
    for n in lora.pairs(first):
        for k in range(4):
            have = [(c, x) for c, x in zip(got.ids, got.examples.tolist(), strict=True) if drawn[c] > k]
            rows = [first[n.a][k] + got.gather("delta")[c][n.a][k] for c, _ in have]
            want = sum(x * row for (_, x), row in zip(have, rows, strict=True)) / sum(x for _, x in have)
            torch.testing.assert_close(done.state["model"][n.a][k], want, rtol=1e-10, atol=1e-13)
    assert {int(c): int(s["rank"]) for c, s in done.clients().items()} == {c: int(drawn[c]) for c in got.ids}
    head = 16 * 3 + 3
    assert done.rows[0]["bytes/up"] == sum(8 * 2 * 32 * int(drawn[c]) + 8 * head + 8 + 8 for c in got.ids)


def test_the_penalty_and_the_pruning_are_the_cards(on_bert: OnBert) -> None:
    """One client, whole batches, by torch's own autograd: rank 4 to 2 if the tail's product has shrunk."""
    for lam, says, size in ((2.0, 2, 0.3), (0.0, 4, 0.01)):
        spec = {"name": "hetlora", "gamma": 0.5, "lam": lam, "least": 1}
        c = toy.config(spec, executor="vmap", dtype="float64", **mixed(on_bert, rank=4, **WHOLE))
        fed = toy.make_fed(c)
        g = torch.Generator().manual_seed(0)
        model = {
            n: torch.randn(p.shape, generator=g, dtype=p.dtype) * size if lora.is_b(n) else p
            for n, p in fed.task.fresh_params(1).items()
        }
        fed.begin(1)
        client = 3
        got = fed.ask(fed.method.train, [client], shared={"model": model})
        names = lora.pairs(model)

        def tail(p: Any, names: Any = names) -> Any:
            return sum(p[n.b][:, 2:4].norm() * p[n.a][2:4].norm() for n in names)

        rows = fed.federation.train[client]
        x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
        here = {n: p.clone().requires_grad_() for n, p in model.items()}
        for _ in range(3):
            logits = torch.func.functional_call(fed.task._module, here, (x,))
            loss = F.cross_entropy(logits, y) + lam * tail(here)
            for p, d in zip(here.values(), torch.autograd.grad(loss, list(here.values())), strict=True):
                p.data -= 0.5 * d
        shrunk = float(tail(here).detach()) < float(tail(model))
        assert shrunk == (says == 2)
        assert int(got.gather("rank")[client]) == says
        for n, p in got.gather("delta")[client].items():
            want = (here[n] - model[n]).detach()
            torch.testing.assert_close(p, ranks.cut({n: want}, says)[n], rtol=1e-9, atol=1e-12)
        norm = sum(float((here[n.b][:, :says] @ here[n.a][:says]).detach().norm()) ** 2 for n in names) ** 0.5
        assert float(got.gather("norm")[client]) == pytest.approx(norm, rel=1e-9)


def test_a_pruned_client_stays_pruned_and_pays_less(on_bert: OnBert) -> None:
    spec = {"name": "hetlora", "gamma": 0.5, "lam": 1.0, "least": 2}
    more = mixed(on_bert, rank={2: 0.5, 8: 0.5}, federation={"per_round": None})
    done = toy.simulate(spec, rounds=4, executor="vmap", **more)
    drawn, now = done.fed.task.ranks, {int(c): int(s["rank"]) for c, s in done.clients().items()}
    assert set(now) == set(range(12)) and all(now[c] == 2 for c in now if drawn[c] == 2)
    assert {now[c] for c in now if drawn[c] == 8} <= {2, 4, 8} and sum(now[c] < 8 for c in now if drawn[c] == 8)
    head, sent = 16 * 3 + 3, 4 * 2 * 32
    ups = [r["bytes/up"] for r in done.rows]
    assert ups == sorted(ups, reverse=True) and ups[-1] < ups[0]
    assert ups[-1] == sum(sent * r for r in now.values()) + 12 * (4 * head + 4 + 8)
    first = sum(sent * int(r) for r in drawn[:12]) + 12 * 4 * head
    downs = [r["bytes/down"] for r in done.rows]
    assert downs[0] == first and [d + 12 * 12 for d in downs[1:]] == ups[:-1]  # comes down at the rank that went up
    assert done.rows[-1]["lora/rank"] == pytest.approx(np.mean(list(now.values())))


def test_settings_that_do_not_fit(on_bert: OnBert) -> None:
    from rayfed.errors import ConfigError

    with pytest.raises(ConfigError, match=r"method.least: 9 found, allowed: at most the largest rank \(4\)"):
        toy.config({"name": "hetlora", "least": 9}, **mixed(on_bert))
    with pytest.raises(ConfigError, match=r"method.gamma: 1.5 found"):
        toy.config({"name": "hetlora", "gamma": 1.5}, **mixed(on_bert))
