"""FedEx-LoRA: the mean of the factors and the residual together are the mean of the clients' weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import Watched, make_model

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


def effective(task: Any, model: Any, n: lora.Names) -> torch.Tensor:
    """W + 4 B A, 4 the tiny LoRA's alpha / r."""
    name, transposed = lora.weight_of(task, n)
    w = model.get(name, task.frozen[name])
    return (w.T if transposed else w) + 4 * model[n.b] @ model[n.a]


@pytest.mark.parametrize(("kind", "weight"), [("bert", "one"), ("bert", "examples"), ("gpt2", "one")])
def test_the_weights_are_the_mean_of_the_clients_weights(
    on_bert: OnBert, tmp_path_factory: Any, kind: str, weight: str
) -> None:
    more = on_bert({})
    if kind == "gpt2":  # square layers whose weights are stored transposed
        where = tmp_path_factory.mktemp("gpt2")
        make_model(where, "gpt2", layers=1, spread=0.4)
        adapter = {"kind": "lora", "rank": 2, "alpha": 8, "targets": ["c_proj"]}
        more = {**toy.merge(more, {"task": {"model": {"name": f"hf:{where}"}}}), "adapter": adapter}
    method = {"name": "fedex_lora", "weight": weight}
    done = toy.simulate(method, dtype="float64", executor="vmap", kind=Watched, **more)
    old = toy.simulate(method, rounds=1, dtype="float64", executor="vmap", **more).state["model"]
    got, task = done.fed.got[-1], done.fed.task
    p = got.examples if weight == "examples" else torch.ones_like(got.examples)
    names, far = lora.pairs(task.params_like), 0.0
    for n in names:
        each = [
            effective(task, {**old, **tree.add({k: old[k] for k in d}, d)}, n)
            for d in tree.unstack(got.stacked("delta"))
        ]
        want = sum(w * x for w, x in zip(p / p.sum(), each, strict=True))
        torch.testing.assert_close(effective(task, done.state["model"], n), want, rtol=1e-12, atol=1e-13)
        far = max(far, float((done.state["model"][n.b] - old[n.b]).norm()))
    name = lora.weight_of(task, names[-1])[0]
    assert far > 1e-3 and not torch.equal(done.state["model"][name], old[name])  # there was a residual


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
def test_the_factors_are_fedits_and_one_client_leaves_no_residual(on_bert: OnBert) -> None:
    """After one round, from the same base."""
    method = {"name": "fedex_lora", "weight": "examples"}
    for n in (1, 7):
        more = on_bert({"federation": {"per_round": n}})
        ours, plain = (
            toy.simulate(m, rounds=1, dtype="float64", **more) for m in (method, {"name": "fedit", "gap": True})
        )
        trained, base = lora.split_trained(ours.fed.task, ours.state["model"])
        assert tree.same(trained, plain.state["model"])
        went = max(float((w - ours.fed.task.frozen[k]).abs().max()) for k, w in base.items())
        assert len(base) == 2 and ((went < 1e-15) == (n == 1))
        assert ours.rows[0]["lora/gap"] == plain.rows[0]["lora/gap"]
