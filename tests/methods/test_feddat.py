"""FedDAT: two steps a batch, a private and a shared bottleneck as each other's teachers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rayfed import tree
from rayfed.engine.evaluation import Evaluation
from rayfed.methods.feddat import ADAPTER, HEAD, both, divergence
from tests import toy

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
BOTTLENECK = {"adapter": {"kind": "bottleneck", "size": 3}}
ONE = toy.merge(BOTTLENECK, {"local": {"steps": 1, "epochs": None, "batch_size": 64}, "federation": {"per_round": 1}})


def filled(params: Any, seed: int) -> Any:
    g = torch.Generator().manual_seed(seed)
    return {n: 0.3 * torch.randn(p.shape, generator=g).to(p.dtype) for n, p in params.items()}


def test_both_of_one_is_that_one_and_both_of_two_is_their_mean(on_bert: OnBert) -> None:
    """relu works entry by entry, so that two halves side by side are one bottleneck of twice the size."""
    fed = toy.make_fed(toy.config("feddat", dtype="float64", **on_bert(BOTTLENECK)))
    task = fed.task
    a, b = (ADAPTER.select(filled(task.params_like, s), task) for s in (1, 2))
    head = HEAD.select(filled(task.params_like, 3), task)
    x = torch.as_tensor(fed.federation.arrays["x"][:4])
    alone = task.apply({**a, **head}, x)
    torch.testing.assert_close(task.apply({**both(a, a), **head}, x), alone, rtol=1e-10, atol=1e-12)
    place = next(n for n in a if n.endswith("down.weight")).removesuffix("down.weight")
    h = torch.randn(5, a[f"{place}down.weight"].shape[1], dtype=torch.float64)

    def bottleneck(t: Any) -> torch.Tensor:
        inner = torch.relu(h @ t[f"{place}down.weight"].T + t[f"{place}down.bias"])
        return inner @ t[f"{place}up.weight"].T + t[f"{place}up.bias"]

    torch.testing.assert_close(bottleneck(both(a, b)), (bottleneck(a) + bottleneck(b)) / 2, rtol=1e-12, atol=1e-13)


def test_the_divergence_by_hand() -> None:
    """T 1: (3/4, 1/4) against (1/2, 1/2) is 3/4 ln 3/2 + 1/4 ln 1/2; logits and T twice as large are four times that."""
    t, s = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)
    want = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(divergence(t, s, 1.0)) == pytest.approx(want, rel=1e-5)
    assert float(divergence(2 * t, s, 2.0)) == pytest.approx(4 * want, rel=1e-5)


@pytest.mark.parametrize("distill", [1.0, 0.0])
def test_two_steps_of_a_batch_by_autograd(on_bert: OnBert, distill: float) -> None:
    done = toy.simulate({"name": "feddat", "distill": distill}, rounds=1, dtype="float64", **on_bert(ONE))
    fed, task = done.fed, done.fed.task
    (c,) = fed.drawn[0].ids
    rows = fed.federation.train[c]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    shared, own = done.initial["shared"], ADAPTER.select(task.initial, task)
    head = HEAD.select(task.initial, task)
    held, lr = shared, 0.5

    def moved(adapter: Any, head: Any, double: bool, teacher: torch.Tensor) -> Any:
        a, h = ({n: p.clone().requires_grad_() for n, p in t.items()} for t in (adapter, head))
        z = task.apply({**(both(a, held) if double else a), **h}, x)
        loss = (F.cross_entropy(z, y) + distill * divergence(teacher, z, 3.0).mean()) / 2
        slopes = torch.autograd.grad(loss, [*a.values(), *h.values()])
        new = [(p - lr * g).detach() for p, g in zip([*a.values(), *h.values()], slopes, strict=True)]
        return dict(zip(a, new[: len(a)], strict=True)), dict(zip(h, new[len(a) :], strict=True)), z.detach()

    z_all = task.apply({**both(own, held), **head}, x).detach()
    shared, head, z_1 = moved(shared, head, False, z_all)
    own, head, _ = moved(own, head, True, z_1)
    kept = done.clients()[str(c)]
    torch.testing.assert_close(done.state["shared"], shared, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kept["own"], own, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kept["head"], head, rtol=1e-9, atol=1e-12)
    assert tree.same(kept["held"], done.initial["shared"])
    assert float(tree.norm(tree.sub(own, ADAPTER.select(task.initial, task)))) > 1e-4


@pytest.mark.parametrize("serve", ["both", "own", "shared"])
def test_what_is_served(on_bert: OnBert, serve: str) -> None:
    done = toy.simulate({"name": "feddat", "serve": serve}, dtype="float64", **on_bert(BOTTLENECK))
    fed, kept = done.fed, done.clients()
    old, new = int(next(iter(kept))), next(c for c in range(6) if str(c) not in kept)
    ask = fed.dispatch.ask(Evaluation.SERVED, [old, new], shared=fed.method.serve(done.state), mine={})
    served, x = ask.gather("model"), torch.as_tensor(fed.federation.arrays["x"][:4])
    own, newest = kept[str(old)], done.state["shared"]
    adapter = {"both": both(own["own"], own["held"]), "own": own["own"], "shared": newest}[serve]
    want = fed.task.apply({**adapter, **own["head"]}, x)
    torch.testing.assert_close(fed.task.apply(served[old], x), want, rtol=1e-9, atol=1e-11)
    first = fed.task.apply({**newest, **HEAD.select(fed.task.initial, fed.task)}, x)
    torch.testing.assert_close(fed.task.apply(served[new], x), first, rtol=1e-9, atol=1e-11)


def test_only_the_shared_adapter_travels(on_bert: OnBert) -> None:
    done = toy.simulate("feddat", rounds=1, **on_bert(BOTTLENECK))
    numbers = sum(p.numel() for p in done.state["shared"].values())
    asked = len(done.fed.drawn[0].ids)
    assert done.rows[0]["bytes/down"] == asked * 4 * numbers and done.rows[0]["bytes/up"] == asked * 4 * numbers
    assert not set(done.state["shared"]) & set(done.fed.task.head)
