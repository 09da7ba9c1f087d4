"""FedE4RAG: its two ends are FedAvg and training alone; the teacher is the model that was sent; uploads are the clients' own encoders."""

from __future__ import annotations

from typing import Any

import torch

from rayfed import tree
from tests import toy


def ran(method: Any, rounds: int = 2, **changes: Any) -> toy.Result:
    return toy.simulate(method, dtype="float64", rounds=rounds, **toy.merge(toy.PAIRS, changes))


def test_without_a_teacher_from_the_received_model_it_is_fedavg() -> None:
    ours = ran({"name": "fed_e4rag", "lam": 0.0, "start": "received"})
    assert tree.same(ours.state, ran({"name": "fedavg", "weight": "one"}).state)


def test_without_a_teacher_from_its_own_model_it_trains_alone() -> None:
    ours, alone = ran({"name": "fed_e4rag", "lam": 0.0}, 3), ran("local_only", 3)
    assert ours.clients().keys() == alone.clients().keys()
    for c, own in ours.clients().items():
        assert tree.same(own["model"], alone.clients()[c]["model"])


def test_the_global_model_is_the_mean_of_the_clients_own() -> None:
    done = ran("fed_e4rag", 1)
    models = [c["model"] for c in done.clients().values()]
    for n, p in done.state["model"].items():
        torch.testing.assert_close(p, torch.stack([m[n] for m in models]).mean(0))


def test_a_step_by_hand() -> None:
    """At the first step the teacher is the model itself: neither the distance nor its gradient is there; at the second it is."""
    lam, lr = 3.0, 0.1
    changes = {"local": {"epochs": None, "steps": 1, "batch_size": 64, "optimizer": {"name": "sgd", "lr": lr}}}
    done = ran(
        {"name": "fed_e4rag", "lam": lam}, 2, federation={"per_round": None, "holdout": {"kind": "none"}}, **changes
    )
    task: Any = done.fed.task
    f, clients = done.fed.federation, range(done.fed.federation.clients)
    assert all(len(f.train[c]) <= 64 for c in clients)

    def trained(model: Any, teacher: Any, c: int) -> Any:
        batch = task.batch({n: a[f.train[c]] for n, a in f.arrays.items()})

        def loss(p: Any) -> torch.Tensor:
            s, t = task.similarities(p, batch), task.similarities(teacher, batch)
            return task.contrast(s, batch).mean() + lam * ((s - t) ** 2).mean()

        return tree.add(model, torch.func.grad(loss)(model), -lr)

    first = done.initial["model"]

    def alone(c: int) -> Any:
        batch = task.batch({n: a[f.train[c]] for n, a in f.arrays.items()})
        return tree.add(first, torch.func.grad(lambda p: task.loss(p, batch).mean())(first), -lr)

    plain = {c: alone(c) for c in clients}
    models = {c: trained(first, first, c) for c in clients}
    for c in clients:
        assert float(tree.norm(tree.sub(models[c], plain[c]))) < 1e-12
    teacher = tree.map(lambda *xs: torch.stack(xs).mean(0), *models.values())
    for c in clients:
        want = trained(models[c], teacher, c)
        got = done.clients()[str(c)]["model"]
        assert all(torch.allclose(got[n], want[n], rtol=0, atol=1e-12) for n in want)


def test_who_is_served_what() -> None:
    own, shared = (ran({"name": "fed_e4rag", "view": v}) for v in ("own", "shared"))
    assert tree.same(own.state, shared.state)
    a, b = ({r["client"]: r["cosine"] for r in d.scores()[1]} for d in (own, shared))
    asked = {int(c) for c in own.clients()}
    assert all((a[c] != b[c]) == (c in asked) for c in a)
