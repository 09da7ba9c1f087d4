"""FedSA-LoRA: the mean of A at the server, B and the head with their clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.adapters import lora
from rayfed.engine.evaluation import Evaluation
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("weight", ["examples", "one"])
def test_every_client_trains_all_of_it_and_sends_a(on_bert: OnBert, weight: str) -> None:
    method = {"name": "fedsa_lora", "weight": weight}
    done = toy.simulate(method, dtype="float64", executor="vmap", kind=Watched, **on_bert(WHOLE))
    first, rests, a = done.fed.task.initial, {}, done.initial["a"]
    for draw, got in zip(done.fed.drawn, done.fed.got, strict=True):
        n = {c: (len(done.fed.federation.train[c]) if weight == "examples" else 1.0) for c in draw.ids}
        trained = {}
        for c in draw.ids:
            rest = rests.get(c, lora.select(first, lambda n: not lora.is_a(n)))
            trained[c] = descend(done.fed, c, {**a, **rest}, lambda n: True, 3, 0.5)
            rests[c] = lora.select(trained[c], lambda n: not lora.is_a(n))
        a = {k: sum(n[c] * trained[c][k] for c in draw.ids) / sum(n.values()) for k in a}
        assert set(got.stacked("delta")) == set(a) and all("lora_A" in k for k in a)
    torch.testing.assert_close(done.state["a"], a, rtol=1e-8, atol=1e-10)
    assert {int(c) for c in done.clients()} == set(rests)
    for c, kept in done.clients().items():
        torch.testing.assert_close(kept["rest"], rests[int(c)], rtol=1e-8, atol=1e-10)


def test_what_is_served(on_bert: OnBert) -> None:
    """A client's own B and head on the common A; to one never seen the pretrained model with the first head."""
    done = toy.simulate("fedsa_lora", dtype="float64", **on_bert({}))
    fed = done.fed
    new = next(c for c in range(14) if str(c) not in done.clients())
    old = int(next(iter(done.clients())))
    served = fed.dispatch.ask(Evaluation.SERVED, [old, new], shared=fed.method.serve(done.state), mine={}).gather(
        "model"
    )
    assert tree.same(served[old], {n: {**done.state["a"], **done.clients()[str(old)]["rest"]}[n] for n in served[old]})
    x = torch.as_tensor(fed.federation.arrays["x"][:5])
    bare = {n: torch.zeros_like(p) if n not in fed.task.head else p for n, p in fed.task.initial.items()}
    torch.testing.assert_close(fed.task.apply(served[new], x), fed.task.apply(bare, x))
