"""CoPSL: federated with one step and Adam at the server is the central algorithm; one problem is PSL; heads stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.launch import model_check
from rayfed.launch.federations import Federations
from tests import toy
from tests.toy import Result

ADAM = {"optimizer": {"name": "adam", "lr": 0.01}}
SGD = {"optimizer": {"name": "sgd", "lr": 0.01}}
EVERYBODY = {"federation": {"per_round": None, "holdout": {"kind": "none"}}}
CENTRAL = {"task": {"data": {"together": True}}, "federation": {"clients": 1}}


def ran(trunk: str = "server", rounds: int = 3, *changes: Any) -> Result:
    made: Any = toy.merge(toy.FRONTS, EVERYBODY)
    for c in changes:
        made = toy.merge(made, c)
    return toy.simulate({"name": "copsl", "trunk": trunk}, dtype="float64", rounds=rounds, **made)


def heads(done: Result) -> Any:
    """The head of each problem where it is trained, by the problem's number."""
    f, kept = done.fed.federation, done.clients()
    of = {int(k): kept[str(c)]["heads"] for c in range(f.clients) for k in f.class_counts[c].nonzero()[0]}
    return {k: {n: x[k] for n, x in of[k].items()} for k in sorted(of)}


@pytest.mark.parametrize("model", ["psl", "coaction"])
def test_one_step_with_adam_at_the_server_is_central(model: str) -> None:
    spec = {
        "task": {
            "model": {"name": "psl", "hidden": 6}
            if model == "psl"
            else {"name": "coaction", "dim": 4, "heads": 2, "depth": 1}
        }
    }
    federated, central = (ran("server", 5, {"local": ADAM}, spec, more) for more in ({}, CENTRAL))
    assert tree.norm(tree.sub(federated.state["trunk"], federated.initial["trunk"])) > 0.01
    for a, b in zip(tree.values(federated.state["trunk"]), tree.values(central.state["trunk"]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    one, two = heads(federated), heads(central)
    assert one.keys() == two.keys() == set(range(6))
    for k in one:
        for n in one[k]:
            torch.testing.assert_close(one[k][n], two[k][n], rtol=0, atol=1e-6)


def test_a_plain_step_is_the_central_one_over_the_number_of_problems() -> None:
    federated, central = (ran("server", 1, {"local": SGD}, more) for more in ({}, CENTRAL))
    for n, first in federated.initial["trunk"].items():
        torch.testing.assert_close(6 * (federated.state["trunk"][n] - first), central.state["trunk"][n] - first)
    for k, head in heads(federated).items():
        for n, x in head.items():
            torch.testing.assert_close(x, heads(central)[k][n])


def test_a_step_by_hand() -> None:
    done = ran("server", 1, {"local": SGD})
    fed: Any = done.fed
    fed.begin(1)
    p = fed.task.preferences(torch.tensor(fed.key("preferences")), (1, 4))[0]
    first = {n: x.clone().requires_grad_() for n, x in fed.task.initial.items()}
    losses = fed.task.losses(first, p)
    slopes = torch.autograd.grad(losses.sum(), list(first.values()))
    for (n, x), g in zip(first.items(), slopes, strict=True):
        if n.startswith("trunk"):
            torch.testing.assert_close(done.state["trunk"][n], (x - 0.01 * g / 6).detach())
    f = fed.federation
    for c, own in done.clients().items():
        k = int(f.class_counts[int(c)].argmax())
        (slope,) = torch.autograd.grad(fed.task.losses(first, p)[:, k].sum(), first["heads.bias_2"])
        torch.testing.assert_close(own["heads"]["heads.bias_2"], (first["heads.bias_2"] - 0.01 * slope).detach())


def test_only_its_own_head_moves() -> None:
    done = ran("client", 2, {"local": {**ADAM, "steps": 3}})
    f, first = done.fed.federation, done.fed.task.initial
    for c, own in done.clients().items():
        k = int(f.class_counts[int(c)].argmax())
        for n, x in own["heads"].items():
            still = [i for i in range(6) if i != k]
            assert torch.equal(x[still], first[n][still]) and not torch.equal(x[k], first[n][k])


def test_one_problem_alone_is_shared_with_nobody() -> None:
    """A single client's mean is its own trunk: shared by `client`, kept by `alone`, and under plain steps also stepped by the server."""
    one = {"federation": {"clients": 1}, "local": SGD}
    alone, client, server = (ran(t, 3, one) for t in ("alone", "client", "server"))
    (kept,) = alone.clients().values()
    for other in (client, server):
        for n, x in kept["trunk"].items():
            torch.testing.assert_close(other.state["trunk"][n], x)
        (theirs,) = other.clients().values()
        for n, x in kept["heads"].items():
            torch.testing.assert_close(theirs["heads"][n], x)
    assert tree.same(alone.state, alone.initial)
    preferences = 3 * 4 * 2 * 8  # rounds, preferences of a step, objectives, bytes: no trunk travels
    assert sum(r["bytes/down"] + r["bytes/up"] for r in alone.rows) == preferences


def test_clients_keep_their_optimizers_state() -> None:
    """Two rounds of three steps by clients alone are one of six: nothing is forgotten at a round's border."""
    local = {"local": {**ADAM, "steps": 3}}
    done = ran("alone", 2, local)
    assert all(float(c["opt"]["t"]) == 6 for c in done.clients().values())


def test_what_it_cannot_do_is_refused() -> None:
    from rayfed.errors import ConfigError

    for local, says in (
        ({"steps": None, "epochs": 1}, "local.steps: null found"),
        ({"steps": 5}, "with trunk: server a round is one step; allowed: 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            toy.config("copsl", **toy.merge(toy.FRONTS, {"local": local}))


OWN = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, input_shape):
        super().__init__()
        self.heads = nn.Linear(2, 36)
        self.trunk = nn.Linear({trunk}, 2) if {trunk} else nn.Identity()

    def forward(self, p):
        return self.heads(p).unflatten(-1, (6, 6))
"""


def test_a_network_without_heads_or_without_a_trunk_is_refused_before_the_start(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    for text, said in (
        (OWN.replace("heads", "body").format(trunk=2), "of which no parameter is part of `heads`"),
        (OWN.format(trunk=0), "of which all parameters are part of `heads`"),
    ):
        file.write_text(text)
        model = {"task": {"model": {"name": f"{file}:Net"}}}
        made = toy.config("copsl", **toy.merge(toy.merge(toy.FRONTS, EVERYBODY), model))
        asked = model_check.question(made, Federations().of(made))
        assert asked is not None
        (problem,) = model_check.check_models({"": asked})[""]
        assert said in problem, problem
