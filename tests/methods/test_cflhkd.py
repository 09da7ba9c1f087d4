"""CFLHKD: what it reduces to, teachers and merges by hand, newcomers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.distill import ensemble
from rayfed.methods.cflhkd import merged, shares
from tests import toy

DOUBLE = {"executor": "vmap", "dtype": "float64"}
EVERYONE = {"federation": {"per_round": None}}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")
needs_oracle = pytest.mark.skipif("oracle" not in methods.names(), reason="compared with oracle, which is not there")


def cflhkd(**settings: Any) -> dict[str, Any]:
    return {"name": "cflhkd", **settings}


def one_round(done: toy.Result, state: tree.Tree, number: int) -> tree.Tree:
    fed = toy.make_fed(done.fed.config)
    fed.begin(number)
    return fed.method.round(state, fed, fed.task)


def close(a: tree.Tree, b: tree.Tree, atol: float = 1e-12) -> None:
    torch.testing.assert_close(tree.flatten(a), tree.flatten(b), rtol=0, atol=atol)


# -- what it reduces to ------------------------------------------------------------------------------------------------


@needs_fedavg
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_one_cluster_without_teachers_is_fedavg_to_the_bit(alpha: float, executor: str) -> None:
    done = toy.simulate(cflhkd(clusters=1, lam=0.0, alpha=alpha), rounds=3, executor=executor)
    average = toy.simulate("fedavg", rounds=3, executor=executor).state["model"]
    assert tree.same(done.state["model"], average) and tree.same(done.state["experts"], {"0": average})


@needs_oracle
def test_without_teachers_and_cloud_it_is_fedavg_in_each_cluster_to_the_bit() -> None:
    """Round 2 of the planted groups, from the same models; w_g is only a report."""
    ours = toy.simulate(cflhkd(clusterer="oracle", lam=0.0, alpha=0.0), rounds=1, executor="vmap", **EVERYONE)
    theirs = toy.simulate("oracle", rounds=1, executor="vmap", **EVERYONE)
    of = {k: str(int(theirs.state["assignment"][ours.state["assignment"].tolist().index(int(k))])) for k in "012"}
    for k in "012":
        close(ours.state["experts"][k], theirs.state["experts"][of[k]], 1e-6)
    state = {**theirs.state, "experts": {of[k]: ours.state["experts"][k] for k in "012"}}
    two, want = one_round(ours, ours.state, 2), one_round(theirs, state, 2)
    for k in "012":
        assert tree.same(two["experts"][k], want["experts"][of[k]])
    assert not tree.same(two["model"], ours.state["model"])


@needs_fedavg
@pytest.mark.parametrize("settings", [{}, {"recluster_every": 1}], ids=str)
def test_clusters_that_restart_from_the_global_model_are_fedavg(settings: dict[str, Any]) -> None:
    """alpha 1 and no teachers, all clients in each round: the mean is taken in two stages."""
    done = toy.simulate(cflhkd(lam=0.0, alpha=1.0, **settings), rounds=3, **DOUBLE, **EVERYONE)
    close(done.state["model"], toy.simulate("fedavg", rounds=3, **DOUBLE, **EVERYONE).state["model"])
    assert len(done.state["experts"]) == 3
    for expert in done.state["experts"].values():
        close(expert, done.state["model"])


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_the_cards_numbers() -> None:
    """30 and 10 examples of models 2 and 6 give 3, and a quarter of the way 2.25 and 5.25. Two teachers of a student at (0.5, 0.5)."""
    models = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([6.0])}]
    assert merged(models, torch.tensor([30.0, 10.0]) / 40)["w"].tolist() == [3.0]
    done = toy.simulate(cflhkd(alpha=0.25, lam=0.0), rounds=1)
    state = {
        "model": {"w": torch.zeros(1)},
        "experts": {"0": models[0], "4": models[1]},
        "assignment": torch.tensor([0, 4, -1, 0]),
        "examples": torch.tensor([10.0, 10.0, 0.0, 20.0], dtype=torch.float64),
    }
    after = done.fed.method._cloud(state)
    assert after["model"]["w"].tolist() == [3.0]
    assert {k: e["w"].tolist() for k, e in after["experts"].items()} == {"0": [2.25], "4": [5.25]}
    teachers, student = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log(), torch.zeros(1, 2)
    apart = torch.cat([ensemble.kl(t[None], student, 1.0) for t in teachers])
    assert apart.tolist() == pytest.approx([0.1927, 0.0201], abs=5e-5)
    assert float(shares(torch.zeros(2), None, 1.0) @ apart) == pytest.approx(0.1064, abs=5e-5)


def test_teachers_weights() -> None:
    """They sum to 1, one's own model has none, and a loss less by log 3 triples a weight."""
    assert shares(torch.zeros(4), torch.tensor(1), 1.0).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    losses = torch.tensor([1.0, 1.0 + np.log(3), 0.0])
    assert shares(losses, torch.tensor(2), 1.0).tolist() == pytest.approx([0.75, 0.25, 0])
    assert shares(losses, None, 1e9).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("settings", [{}, {"teachers": "all"}, {"teachers": "all", "weigh": "loss"}], ids=str)
def test_the_clients_loss_in_plain_torch(settings: dict[str, Any], plain: Any) -> None:
    """Round 2 of whole-batch descent on the method's loss, by autograd, from models that round 1 left."""
    spec = cflhkd(clusterer="oracle", lam=0.4, tau=1.5, alpha=0.0, **settings)
    done = toy.simulate(spec, rounds=1, **plain.WORK, **EVERYONE)
    state, task = done.state, done.fed.task
    two = one_round(done, state, 2)
    for k, start in state["experts"].items():
        others = [state["model"]]
        if "teachers" in settings:
            others = [*(e for j, e in sorted(state["experts"].items()) if j != k), state["model"]]
        want, total = tree.zeros(start), 0.0
        for c in [c for c, at in enumerate(state["assignment"].tolist()) if at == int(k)]:
            x, y = (torch.as_tensor(a) for a in plain.data(done.fed, c))
            at_first = torch.stack([torch.nn.functional.cross_entropy(task.apply(t, x), y) for t in others])
            beta = (
                torch.softmax(-at_first, 0)
                if "weigh" in settings
                else torch.full((len(others),), 1 / len(others), dtype=torch.float64)
            )
            w = {n: p.clone().requires_grad_() for n, p in start.items()}
            for _ in range(plain.STEPS):
                logits = task.apply(w, x)
                told = [
                    1.5**2 * torch.nn.functional.kl_div(
                        torch.log_softmax(logits / 1.5, 1), torch.softmax(task.apply(t, x) / 1.5, 1), reduction="batchmean"
                    )
                    for t in others
                ]  # fmt: skip
                loss = 0.6 * torch.nn.functional.cross_entropy(logits, y) + 0.4 * sum(b * t for b, t in zip(beta, told))
                grads = torch.autograd.grad(loss, list(w.values()))
                w = {n: (p - plain.LR * g).detach().requires_grad_() for (n, p), g in zip(w.items(), grads)}
            want, total = tree.add(want, tree.sub(tree.detach(w), start), len(y)), total + len(y)
        close(two["experts"][k], tree.add(start, want, 1 / total), 1e-10)


def test_a_teacher_equal_to_the_student_teaches_nothing() -> None:
    """One cluster whose model is the global one: of a whole-batch step only the labels' share counts."""
    step = {"local": {"epochs": 1, "batch_size": 64}, **EVERYONE}
    start = toy.simulate(cflhkd(clusters=1), rounds=1, **DOUBLE, **step)
    moved = [
        one_round(toy.simulate(cflhkd(clusters=1, lam=lam), rounds=1, **DOUBLE, **step), start.state, 2)["model"]
        for lam in (0.0, 0.5)
    ]
    whole, half = (tree.flatten(tree.sub(m, start.state["model"])) for m in moved)
    torch.testing.assert_close(half, whole / 2, rtol=0, atol=1e-12)


# -- clusters and newcomers ---------------------------------------------------------------------------------------------


def test_newcomers_join_the_model_of_least_loss(plain: Any) -> None:
    """Seven of twelve clients a round: who first comes in round 2 chooses, the others keep their cluster."""
    one, two = (toy.simulate(cflhkd(lam=0.0), rounds=r, **plain.WORK) for r in (1, 2))
    known = {int(k): plain.vector(e) for k, e in one.state["experts"].items()}
    before, after = one.state["assignment"].tolist(), two.state["assignment"].tolist()
    new = [c for c in two.fed.drawn[1].ids if before[c] < 0]
    assert new and len(known) == 3
    for c in range(12):
        if c in new:
            x, y = plain.data(one.fed, c)
            assert after[c] == min(known, key=lambda k: plain.loss(known[k], x, y))
        else:
            assert after[c] == before[c]
    assert two.rows[1]["visits"] == 7 + len(new)


@needs_fedavg
def test_the_cloud_waits_for_its_round() -> None:
    runs = [toy.simulate(cflhkd(cloud_every=2), rounds=r, **DOUBLE).state["model"] for r in (1, 2, 3)]
    first = toy.simulate("fedavg", rounds=1, **DOUBLE).state["model"]  # a clustering round is one of FedAvg
    assert tree.same(runs[0], first) and not tree.same(runs[1], first) and tree.same(runs[2], runs[1])


def test_what_goes_down() -> None:
    """To each client its own model and, with teachers, the global one, or all K + 1; eight bytes for the place."""
    size = {}
    for name, settings in (("none", {"lam": 0.0}), ("one", {}), ("all", {"teachers": "all"})):
        done = toy.simulate(cflhkd(**settings), rounds=2, executor="vmap", **EVERYONE)
        size[name] = done.rows[1]["bytes/down"] / done.rows[1]["visits"]
    p = tree.nbytes(done.initial["model"])
    assert size == {"none": p + 8, "one": 2 * p + 8, "all": 4 * p + 8}


def test_who_has_no_cluster_is_served_the_global_model() -> None:
    done = toy.simulate(cflhkd(), rounds=1, **DOUBLE)
    method, served = done.fed.method, tree.unstack(done.fed.method.serve(done.state)["experts"])
    assert tree.same(served[int(method.mine(done.state, 99)["place"])], done.state["model"])
    c, k = next((c, k) for c, k in enumerate(done.state["assignment"].tolist()) if k >= 0)
    assert tree.same(served[int(method.mine(done.state, c)["place"])], done.state["experts"][str(k)])
