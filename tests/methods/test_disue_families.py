"""DisUE over architectures: with one it is disue, without a D-phase FedAvg in each family; a round by hand over two."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import keys, tree
from rayfed.distill import ensemble
from rayfed.visits import ClientContext
from tests import toy

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4, "student_lr": 0.2}
TWO = {
    "small": {"name": "mlp", "hidden": [6], "share": 0.5},
    "large": {"name": "mlp", "hidden": [8, 5], "share": 0.5},
}
FAMILIES = {"task": {"model": TWO}}


def named(**settings: Any) -> dict[str, Any]:
    return {"name": "disue_families", **SHORT, **settings}


def test_with_one_architecture_it_is_disue_to_the_bit() -> None:
    done, paper = (toy.simulate({**SHORT, "name": n}, executor="vmap") for n in ("disue_families", "disue"))
    (family,) = done.state["families"].values()
    assert tree.same(family, {n: paper.state[n] for n in ("model", "experts", "assignment")})
    assert tree.same(done.state["generator"], paper.state["generator"])
    assert done.fed.method.clusters(done.state) == paper.fed.method.clusters(paper.state)
    for client in (0, done.fed.population):  # one that takes part, one that is held out
        served = [toy_served(d, client) for d in (done, paper)]
        assert tree.same(*served)


def toy_served(done: toy.Result, client: int) -> tree.Tree:
    method, info = done.fed.method, None
    mine = method.mine(done.state, client)
    context = ClientContext(info, method.serve(done.state), mine, {})  # type: ignore[arg-type]
    view = method.view(done.fed.task.of_client(client))
    model: tree.Tree = view.end(context, view.begin(context))[0]["model"]
    return model


def test_without_a_d_phase_each_family_averages_by_itself() -> None:
    done = toy.simulate(named(distill=False), rounds=1, dtype="float64", **FAMILIES)
    fed = toy.make_fed(done.fed.config)
    fed.begin(1)
    sampled = fed.sample()
    for number, name in enumerate(TWO):
        start = done.initial["families"][name]["model"]
        clients = [c for c in sampled if fed.task.family[c] == number]
        got = fed.ask(fed.method.train, clients, shared={"model": start})
        n, deltas = got.examples.double(), got.gather("delta")
        wanted = start
        for share, c in zip(n / n.sum(), got.ids, strict=True):
            wanted = tree.add(wanted, deltas[c], float(share))
        found = done.state["families"][name]["model"]
        torch.testing.assert_close(tree.flatten(found), tree.flatten(wanted), rtol=0, atol=1e-12)
    none = toy.simulate(named(iterations=0), rounds=1, dtype="float64", **FAMILIES)
    assert tree.same(none.state["families"], done.state["families"])


def test_a_student_learns_from_the_experts_of_both_architectures() -> None:
    """A step on public rows, by hand: of classes that only the other family has, it is taught by that family's experts alone."""
    settings = {
        "name": "disue_families",
        "iterations": 1,
        "student_steps": 1,
        "batch": 1000,
        "inputs": "probe",
        "gamma": 0.5,
        "student_lr": 0.2,
    }
    more = {**FAMILIES, "federation": {"probe": 20}}
    done = toy.simulate(settings, rounds=1, dtype="float64", **more)
    before = toy.simulate({**settings, "distill": False}, rounds=1, dtype="float64", **more)
    tasks, x = done.fed.task.by_family(), done.fed.probe()
    counts, logits = [], []
    for name, family in before.state["families"].items():
        for k, expert in family["experts"].items():
            members = (family["assignment"] == int(k)).nonzero()[:, 0].tolist()
            counts.append(torch.as_tensor(done.fed.federation.class_counts[members].sum(0)).double())
            logits.append(tasks[name].apply(expert, x))
    n = torch.stack(counts).sqrt()
    alpha = n / n.sum(0).clamp(min=1e-300)  # (K, C)
    p = (alpha[:, None] * torch.softmax(torch.stack(logits) / 2, -1)).sum(0)
    q = 2 * torch.log(p.clamp(min=1e-30))
    rng = keys.torch_generator(keys.key(done.fed.config.seed, 1 << 20, -1, "D-phase"))
    rows = torch.randint(len(x), (1000,), generator=rng)
    for name, family in before.state["families"].items():

        def loss(theta: tree.Tree, of: Any = tasks[name]) -> torch.Tensor:
            t = torch.log_softmax(q[rows] / 2, -1)
            return 4 * (t.exp() * (t - torch.log_softmax(of.apply(theta, x[rows]) / 2, -1))).sum(-1).mean()

        wanted = tree.add(family["model"], torch.func.grad(loss)(family["model"]), -0.2 / 4)  # a mean over four classes
        found = done.state["families"][name]["model"]
        torch.testing.assert_close(tree.flatten(found), tree.flatten(wanted), rtol=0, atol=1e-10)
        assert float(tree.norm(tree.sub(found, family["model"]))) > 1e-4


def test_experts_of_two_networks_mix_as_one_ensemble() -> None:
    """30 and 10 rows of a class: 0.75 (0.8, 0.2) + 0.25 (0.4, 0.6) = (0.7, 0.3)."""
    one, two = (lambda w, x: w["b"].log().expand(len(x), 2)), (lambda w, x: (w["a"] + w["b"]).log().expand(len(x), 2))
    answers = ensemble.of_families(
        [
            (one, [{"b": torch.tensor([0.8, 0.2])}]),
            (one, []),
            (two, [{"a": torch.tensor([0.1, 0.1]), "b": torch.tensor([0.3, 0.5])}]),
        ]
    )
    alpha = ensemble.class_weights(torch.tensor([[30, 0], [10, 5]]))
    mixed = ensemble.teacher(answers(torch.zeros(3, 1)), alpha, torch.tensor([0, 0, 1]), "prob", 1.0)
    torch.testing.assert_close(torch.softmax(mixed, -1), torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.4, 0.6]]))


@pytest.mark.parametrize("inputs", ["statistics", "client_generators"])
def test_all_clients_tell_before_the_first_student_learns(inputs: str) -> None:
    more = {"generator_epochs": 1, "noise": 4} if inputs == "client_generators" else {}
    asked_for = {"name": "disue_families", "iterations": 1, "student_steps": 1, "batch": 8, "inputs": inputs, **more}
    done = toy.simulate(asked_for, rounds=1, **FAMILIES)
    asked = {c for f in done.state["families"].values() for c in (f["assignment"] >= 0).nonzero()[:, 0].tolist()}
    assert len({int(done.fed.task.family[c]) for c in asked}) == 2
    told = done.state["generators" if inputs == "client_generators" else "statistics"]
    found = {int(c) for c in told} if inputs == "client_generators" else set(told["by"].nonzero()[:, 0].tolist())
    assert found == asked
    ids = done.fed.method.clusters(done.state)
    assert {c: k % 2 for c, k in ids.items()} == {c: int(done.fed.task.family[c]) for c in asked}
    assert set(ids.values()) == set(done.fed.method.experts(done.state))
