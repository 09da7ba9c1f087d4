"""PFedRec: the user's part never leaves, items that no batch has do not move, a step by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.visits import ClientContext
from tests import toy
from tests.toy import Result

STEPS = {"local": {"epochs": None, "steps": 2, "batch_size": 4}}


def ran(method: Any = "pfedrec", rounds: int = 2, **changes: Any) -> Result:
    spec = {"name": method, "item_rate": 0.5} if isinstance(method, str) else method
    return toy.simulate(spec, dtype="float64", rounds=rounds, **{**toy.TASTES, **changes})


def test_only_the_item_table_is_sent() -> None:
    fed = ran(rounds=1).fed
    wire, task = fed.method.wire, fed.task
    assert {*wire.down, *wire.up} == {"items", "delta", "touched"} and not set(wire.down) & set(wire.keep) - {"items"}
    assert list(wire.down["items"].shape.select(task.params_like, task)) == ["items.weight"]  # type: ignore[attr-defined]
    assert set(wire.keep["user"].shape.select(task.params_like, task)) == {"user.weight", "user.bias"}  # type: ignore[attr-defined]


def test_a_step_by_hand() -> None:
    """The user's part moves first; the items then, by a second forward pass, at a rate of their own."""
    fed = toy.make_fed(toy.config({"name": "pfedrec", "item_rate": 3.0}, dtype="float64", **toy.TASTES))
    t: Any = fed.task
    f = fed.federation
    (phase,) = (made := fed.method.train(t)).phases  # type: ignore[attr-defined]
    own = {**fed.method.own_init(t, 0, 0)}
    items = fed.method.init(t, 5)["items"]
    lr = torch.tensor(0.2, dtype=torch.float64)
    client = ClientContext(SimpleNamespace(lr=lr), {"items": items}, {}, own)  # type: ignore[arg-type]
    batch, key = t.batch({n: a[f.train[0][:3]] for n, a in f.arrays.items()}), torch.tensor(7)
    parts, after = made.end(client, phase.step(made.begin(client), batch, key))

    v, w, b = (
        x.clone().requires_grad_()
        for x in (items["items.weight"], own["user"]["user.weight"], own["user"]["user.bias"])
    )
    asked = torch.cat([batch["y"][:, None], t.negatives(batch["user"], key)], 1)
    target = torch.zeros(asked.shape, dtype=torch.float64)
    target[:, 0] = 1
    grads = torch.autograd.grad(bce(v[asked] @ w[0] + b, target), (w, b))
    w2, b2 = ((x - lr * g).detach() for x, g in zip((w, b), grads, strict=True))
    (slope,) = torch.autograd.grad(bce(v[asked] @ w2[0] + b2, target), (v,))
    assert torch.allclose(after["user"]["user.weight"], w2) and torch.allclose(after["user"]["user.bias"], b2)
    assert torch.allclose(parts["delta"]["items.weight"], -lr * t.classes * 3.0 * slope)
    met = set(asked.reshape(-1).tolist())
    assert set(parts["touched"].nonzero()[:, 0].tolist()) == met
    still = [i for i in range(t.classes) if i not in met]
    assert torch.equal(after["items"]["items.weight"][still], items["items.weight"][still])


def test_both_steps_are_clipped() -> None:
    changes = toy.merge(STEPS, {"local": {"steps": 1, "clip": 1e-4, "optimizer": {"lr": 0.2}}})
    done = ran(rounds=1, **changes)
    task, first = done.fed.task, done.fed.task.initial
    for own in (c for c in done.clients().values() if c["asked"] > 0):
        user = tree.norm(tree.sub(own["user"], {n: first[n] for n in own["user"]}))
        items = tree.norm(tree.sub(own["items"], done.initial["items"]))
        assert 0 < float(user) <= 0.2 * 1e-4 and 0 < float(items) <= 0.2 * task.classes * 0.5 * 1e-4


def test_one_rate_in_a_visit() -> None:
    with pytest.raises(ConfigError, match=r"local\.schedule\.within: linear found"):
        toy.config("pfedrec", **toy.merge(toy.TASTES, {"local": {"schedule": {"within": "linear"}}}))


def test_the_mean_is_over_all_who_were_asked_or_over_those_in_whom_an_item_moved() -> None:
    mean, touched = (
        ran({"name": "pfedrec", "item_rate": 0.5, "aggregate": a}, rounds=1, **STEPS) for a in ("mean", "touched")
    )
    first = mean.initial["items"]["items.weight"]
    kept = mean.clients().values()
    deltas = torch.stack([c["items"]["items.weight"] - first for c in kept if c["asked"] > 0])
    many = (deltas != 0).any(-1).sum(0).clamp(min=1)[:, None]
    assert torch.allclose(mean.state["items"]["items.weight"], first + deltas.mean(0))
    assert torch.allclose(touched.state["items"]["items.weight"], first + deltas.sum(0) / many)
    assert int(many.max()) > 1 and bool((deltas == 0).all(-1).any())


def test_a_user_is_served_its_own_view_or_the_servers() -> None:
    own, shared = (ran({"name": "pfedrec", "item_rate": 0.5, "view": v}) for v in ("own", "shared"))
    assert tree.same(own.state, shared.state)
    assert own.scores()[0]["loss/personal"] != shared.scores()[0]["loss/personal"]
    never = [c for c in range(14) if str(c) not in own.clients()]
    assert never
    a, b = ({c["client"]: c["loss"] for c in d.scores()[1]} for d in (own, shared))
    assert all(a[c] == b[c] for c in never)


def test_other_models_and_optimizers_are_refused() -> None:
    from tests.configs import problems

    base = {
        "method": "pfedrec",
        "task": {"data": "synthetic:tastes", "model": "ncf"},
        "federation": {"partition": "natural"},
    }
    assert any("pfedrec's score function is linear" in p for p in problems(**base))
    adam = {**base, "task": {"data": "synthetic:tastes", "model": "factors"}, "local": {"optimizer": {"name": "adam"}}}
    assert any("pfedrec takes plain steps" in p for p in problems(**adam))


@pytest.mark.slow
def test_a_taste_of_ones_own_is_worth_more_than_everybodys() -> None:
    big = {"name": "synthetic:tastes", "users": 120, "items": 200, "each": 25}
    changes = {
        "task": {"data": big, "model": {"name": "factors", "dim": 8}, "kind": "ranking"},
        "federation": {**toy.TASTES["federation"], "clients": 120, "per_round": 60, "holdout": {"kind": "none"}},
        "local": {"epochs": 2, "batch_size": 32, "optimizer": {"lr": 0.5}},
        "resources": {"cohort": 30},
    }
    own, popular = (
        toy.simulate(m, executor="vmap", rounds=30, **changes).scores()[0]["hr@10/personal"]
        for m in ({"name": "pfedrec", "item_rate": 0.5}, "fedavg")
    )
    assert own > popular > 0.1
