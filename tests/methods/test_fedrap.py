"""FedRAP: without its own tables it is FedNCF, a step by hand, what is sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from rayfed import tree
from rayfed.visits import ClientContext
from tests import toy
from tests.configs import problems


def test_without_own_tables_and_terms_it_is_fedncf() -> None:
    plain = {"name": "fedrap", "lam": 0.0, "mu": 0.0, "personal": False, "item_rate": 1.0}
    done, ncf = (toy.simulate(m, dtype="float64", **toy.TASTES) for m in (plain, "fedncf"))
    torch.testing.assert_close(done.state["items"]["items.weight"], ncf.state["model"]["items.weight"])
    assert all(not bool(c["own"]["items.weight"].any()) for c in done.clients().values())
    for c, own in done.clients().items():
        torch.testing.assert_close(own["user"], ncf.clients()[c]["user"])


def test_only_the_common_table_is_sent() -> None:
    done = toy.simulate({"name": "fedrap", "item_rate": 2.0}, rounds=1, **toy.TASTES)
    wire = done.fed.method.wire
    assert {*wire.down, *wire.up} == {"items", "delta"} and wire.keep["own"].private and wire.keep["user"].private


def test_a_step_by_hand() -> None:
    """One joint step: the user's part at the local rate, both tables at theirs, the terms over the batch's items."""
    lam, mu, rate, lr = 0.3, 0.2, 5.0, 0.2
    fed = toy.make_fed(
        toy.config({"name": "fedrap", "lam": lam, "mu": mu, "item_rate": rate}, dtype="float64", **toy.TASTES)
    )
    t, f = fed.task, fed.federation
    made = fed.method.train(t)  # type: ignore[attr-defined]
    (phase,) = made.phases
    items = fed.method.init(t, 5)["items"]
    first = fed.method.own_init(t, 0, 0)
    own = {"user": first["user"], "own": {"items.weight": 0.1 * torch.ones_like(items["items.weight"])}}
    info = SimpleNamespace(lr=torch.tensor(lr, dtype=torch.float64), ahead=torch.tensor(1))
    client = ClientContext(info, {"items": items}, {}, own)  # type: ignore[arg-type]
    batch, key = t.batch({n: a[f.train[0][:3]] for n, a in f.arrays.items()}), torch.tensor(7)
    carry = phase.enter(client, made.begin(client))  # type: ignore[misc]
    parts, kept = made.end(client, phase.step(carry, batch, key))

    c, d, w, b = (
        x.clone().requires_grad_()
        for x in (
            items["items.weight"],
            own["own"]["items.weight"],
            own["user"]["user.weight"],
            own["user"]["user.bias"],
        )
    )
    asked = torch.cat([batch["y"][:, None], t.negatives(batch["user"], key)], 1)  # type: ignore[attr-defined]
    target = torch.zeros(asked.shape, dtype=torch.float64)
    target[:, 0] = 1
    loss = bce((c + d)[asked] @ w[0] + b, target) - lam * ((d - c)[asked] ** 2).mean() + mu * c[asked].abs().mean()
    slopes = torch.autograd.grad(loss, (c, d, w, b))
    torch.testing.assert_close(parts["delta"]["items.weight"], -lr * rate * slopes[0])
    torch.testing.assert_close(kept["own"]["items.weight"], (d - lr * rate * slopes[1]).detach())
    torch.testing.assert_close(kept["user"]["user.weight"], (w - lr * slopes[2]).detach())
    still = [i for i in range(t.classes) if i not in set(asked.reshape(-1).tolist())]
    assert not bool(parts["delta"]["items.weight"][still].any())


def test_a_user_is_served_the_sum_of_the_tables() -> None:
    done = toy.simulate({"name": "fedrap", "item_rate": 5.0}, dtype="float64", **toy.TASTES)
    fed: Any = done.fed
    rows = {r["client"]: r for r in done.scores()[1]}
    for c, own in done.clients().items():
        model = {**tree.add(done.state["items"], own["own"]), **own["user"]}
        batch = fed.task.batch({n: a[fed.federation.test[int(c)]] for n, a in fed.federation.arrays.items()})
        assert abs(float(fed.task.metrics(model, batch)["loss"].mean()) - rows[int(c)]["loss"]) < 1e-12


def test_other_optimizers_are_refused() -> None:
    base = {
        "method": "fedrap",
        "task": {"data": "synthetic:tastes", "model": "factors"},
        "federation": {"partition": "natural"},
    }
    assert any(
        "fedrap's tables have a rate of their own" in p for p in problems(**base, local={"optimizer": {"name": "adam"}})
    )
