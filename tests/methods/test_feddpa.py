"""FedDPA: a global and a private adapter in every layer, mixed by how close an input is to the client's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from rayfed.engine.evaluation import Evaluation
from rayfed.methods.feddpa import factors, mixed
from tests import toy
from tests.tiny import WHOLE, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
F = {"name": "feddpa", "mode": "F"}


def filled(params: Any, seed: int) -> Any:
    """Random numbers of a tree's shapes."""
    rng = np.random.default_rng(seed)
    return {n: torch.as_tensor(rng.normal(size=tuple(p.shape)) * 0.3).to(p.dtype) for n, p in params.items()}


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_one_pair_of_twice_the_rank_is_the_mixture(on_bert: OnBert, a: float) -> None:
    """W + (1 - a) s B_g A_g + a s B_l A_l, put into the frozen weights by NumPy, gives the same logits."""
    task = toy.make_fed(toy.config("feddpa", dtype="float64", **on_bert({}))).task
    g, own = filled(task.params_like, 1), filled(factors(task.params_like), 2)
    merged = {n: torch.zeros_like(p) if lora.is_b(n) else p for n, p in g.items()}
    for n in lora.pairs(g):
        name, _ = lora.weight_of(task, n)
        b = [t[n.b].numpy() @ t[n.a].numpy() for t in (g, own)]
        merged[name] = task.frozen[name] + torch.as_tensor(4.0 * ((1 - a) * b[0] + a * b[1]))
    x = torch.as_tensor(toy.federation(task.config).arrays["x"][:4])
    torch.testing.assert_close(task.apply(mixed(g, own, a), x), task.apply(merged, x), rtol=1e-9, atol=1e-9)
    assert (task.apply(merged, x) - task.apply(task.initial, x)).norm() > 0.1


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
@pytest.mark.parametrize("mode", ["F", "T"])
def test_the_global_adapter_is_fedits(on_bert: OnBert, mode: str) -> None:
    ours = toy.simulate({"name": "feddpa", "mode": mode, "weight": "examples"}, **on_bert({}))
    plain = toy.simulate("fedit", **on_bert({}))
    assert tree.same(ours.state["model"], plain.state["model"])
    assert bool(ours.clients()) == (mode == "T")


def test_the_private_adapter_trains_on_the_client_s_own_global_one(on_bert: OnBert) -> None:
    done = toy.simulate("feddpa", rounds=1, dtype="float64", **on_bert(WHOLE))
    fed, g = done.fed, done.initial["model"]
    c = fed.drawn[0].ids[0]
    trained = descend(fed, c, g, lambda n: True, 3, 0.5)
    rows = fed.federation.train[c]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    own = factors(g)
    for _ in range(3):
        own = {n: p.clone().requires_grad_() for n, p in own.items()}
        loss = torch.nn.functional.cross_entropy(fed.task.apply(mixed(trained, own, 0.5), x), y)
        own = {
            n: (p - 0.5 * d).detach() for (n, p), d in zip(own.items(), torch.autograd.grad(loss, list(own.values())))
        }
    kept = done.clients()[str(c)]
    torch.testing.assert_close(kept["own"], own, rtol=1e-8, atol=1e-10)
    assert kept["trained"] == 1 and max(float((own[n] - g[n]).abs().max()) for n in own) > 1e-3


def test_local_scores_the_mixture(on_bert: OnBert) -> None:
    more = {
        "rounds": 1,
        "dtype": "float64",
        "score": True,
        **on_bert(toy.merge(WHOLE, {"federation": {"per_round": 1}})),
    }
    for most in (0.5, 0.2):
        done = toy.simulate({"name": "feddpa", "most": most}, **more)
        fed, (c,) = done.fed, done.fed.drawn[0].ids
        served = mixed(done.state["model"], done.clients()[str(c)]["own"], most)
        rows = fed.federation.test[c]
        x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
        found = fed.local_scores[c]
        for params, same in ((served, True), (done.state["model"], False)):
            loss = float(torch.nn.functional.cross_entropy(fed.task.apply(params, x), y, reduction="sum"))
            assert (found["loss"] == pytest.approx(loss, rel=1e-8)) == same
        assert found["n"] == len(rows) > 0


def test_the_weight_of_an_input_is_its_mean_cosine(on_bert: OnBert) -> None:
    """By NumPy over all training instances, one at a time; a client that never trained is served the global model."""
    done = toy.simulate({"name": "feddpa", "instances": 500}, dtype="float64", **on_bert({}))
    fed, task = done.fed, done.fed.task
    old, new = int(next(iter(done.clients()))), next(c for c in range(6) if str(c) not in done.clients())
    served = fed.dispatch.ask(Evaluation.SERVED, [old, new], shared=fed.method.serve(done.state), mine={}).gather(
        "model"
    )
    x = torch.as_tensor(fed.federation.arrays["x"][fed.federation.pooled_test[:6]])
    mine = torch.as_tensor(fed.federation.arrays["x"][fed.federation.train[old]])
    f, stored = (task.features(task.initial, t).numpy() for t in (x, mine))
    cos = [[float(v @ w / np.linalg.norm(v) / np.linalg.norm(w)) for w in stored] for v in f]
    a = 0.5 * np.maximum(0, np.mean(cos, 1))
    assert a.max() <= 0.5 and np.ptp(a) > 1e-4
    want = [
        task.apply(mixed(served[old]["model"], served[old]["own"], float(w)), x[i : i + 1])[0] for i, w in enumerate(a)
    ]
    torch.testing.assert_close(fed.method.logits(task, served[old], x), torch.stack(want), rtol=1e-9, atol=1e-9)
    plain = task.apply(done.state["model"], x)
    torch.testing.assert_close(fed.method.logits(task, served[new], x), plain, rtol=1e-9, atol=1e-9)
    assert (torch.stack(want) - plain).abs().max() > 1e-3


def test_f_trains_its_adapter_when_it_is_served(on_bert: OnBert) -> None:
    done = toy.simulate({**F, "own_epochs": 3}, dtype="float64", **on_bert(WHOLE))
    fed, g = done.fed, done.state["model"]
    served = fed.dispatch.ask(Evaluation.SERVED, [0], shared=fed.method.serve(done.state), mine={}).gather("model")[0]
    assert tree.same(served["model"], {n: g[n] for n in served["model"]})
    rows = fed.federation.train[0]
    x, y = (torch.as_tensor(fed.federation.arrays[k][rows]) for k in ("x", "y"))
    own = factors(fed.task.initial)
    for _ in range(3):
        own = {n: p.clone().requires_grad_() for n, p in own.items()}
        loss = torch.nn.functional.cross_entropy(fed.task.apply(mixed(g, own, 0.5), x), y)
        own = {
            n: (p - 0.5 * d).detach() for (n, p), d in zip(own.items(), torch.autograd.grad(loss, list(own.values())))
        }
    torch.testing.assert_close(served["own"], own, rtol=1e-8, atol=1e-10)
    assert served["trained"] == 1


def test_instances_are_as_many_as_asked_for(on_bert: OnBert) -> None:
    """One instance: what is held is that instance's own unit features."""
    done = toy.simulate({"name": "feddpa", "instances": 1}, dtype="float64", **on_bert({}))
    fed, task = done.fed, done.fed.task
    served = fed.dispatch.ask(Evaluation.SERVED, [0], shared=fed.method.serve(done.state), mine={})
    centre = served.gather("model")[0]["centre"]
    x = torch.as_tensor(fed.federation.arrays["x"][fed.federation.train[0]])
    unit = torch.nn.functional.normalize(task.features(task.initial, x), dim=-1)
    assert float((unit - centre).norm(dim=1).min()) < 1e-9
