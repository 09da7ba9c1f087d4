"""FedConv: filters by hand, shapes both ways, what stays while filters learn, and FedAvg where there is nothing to compress."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import FailsAgain
from rayfed.methods import fedconv
from tests import toy

OFF = {"name": "fedconv", "server_epochs": 0, "filter_epochs": 0, "weight_epochs": 0}
PUBLIC: Any = {"federation": {"public": {"rows": 40, "labels": True}}}
TWO: Any = {
    **PUBLIC,
    "task": {
        **toy.TOY["task"],
        "model": {
            "large": {"name": "mlp", "hidden": [8], "share": 0.5},
            "small": {"name": "mlp", "hidden": [5], "share": 0.5},
        },
    },
    "local": {"epochs": 1},
}


def test_a_filter_by_hand() -> None:
    """[[1, 2, 3], [4, 5, 6]] to 2 x 2 by the kernel [3, 4] / 5, and [1, 2] to three numbers back."""
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    f = {"w": {"v": torch.tensor([[[3.0, 4.0]]]), "g": torch.ones(1), "p": torch.ones(1)}}
    torch.testing.assert_close(fedconv.compressed(f, {"w": x}, "none")["w"], torch.tensor([[2.2, 3.6], [6.4, 7.8]]))
    b = fedconv.dilated(f, {"w": torch.tensor([1.0, 2.0])}, "none")["w"]
    torch.testing.assert_close(b, torch.tensor([0.6, 0.8 + 1.2, 1.6]))
    assert fedconv.mlr(torch.tensor([2.0, -2.0]), "mlr").tolist() == pytest.approx([1.7, -0.002])


def test_filters_start_as_a_cut_and_a_kernel_of_one_is_the_identity() -> None:
    of = {
        "conv": ((4, 3, 2, 2), (2, 3, 2, 2)),
        "matrix": ((4, 6), (3, 2)),
        "bias": ((4,), (3,)),
        "one": ((2, 2), (2, 2)),
    }
    theta = fedconv.filters(of, 0, False, torch.float32)
    big = {n: torch.randn(a) for n, (a, _) in of.items()}
    small = fedconv.compressed(theta, big, "none")
    for n, (a, b) in of.items():
        cut = big[n][tuple(slice(0, s) for s in b)]
        torch.testing.assert_close(small[n], cut)
        back = fedconv.dilated(theta, small, "none")[n]
        assert back.shape == a and torch.equal(back[tuple(slice(0, s) for s in b)], small[n])
    assert torch.equal(small["one"], big["one"])


def test_with_one_family_and_nothing_trained_at_the_server_it_is_fedavg_to_the_bit() -> None:
    done, plain = (toy.simulate(m, executor="vmap", **PUBLIC) for m in (OFF, "fedavg"))
    assert tree.same(done.state["model"], plain.state["model"])


def test_filters_learn_while_weights_stay_and_shapes_are_the_networks() -> None:
    on = {**OFF, "filter_epochs": 2, "filter_lr": 0.05}
    done = toy.simulate(on, rounds=1, until=1, executor="vmap", **TWO)
    task, first = done.fed.task, done.initial
    assert not tree.same(done.state["compress"], first["compress"])
    small = fedconv.compressed(done.state["compress"]["small"], done.state["model"], "mlr")
    assert {n: p.shape for n, p in small.items()} == {n: p.shape for n, p in task.families["small"].params_like.items()}
    sent = {}

    def ask(visit: Any, clients: Any, *, shared: Any, **more: Any) -> Any:
        sent[len(shared["model"]["head.weight"][0])] = shared["model"]
        return real(visit, clients, shared=shared, **more)

    real = done.fed.ask
    done.fed.ask = ask
    done.fed.begin(2)
    done.fed.method.round(first, done.fed, task)
    assert tree.same(sent[8], first["model"])  # W itself, to the bit, after filters have learned
    assert {n: tuple(p.shape) for n, p in sent[5].items()} == {n: tuple(p.shape) for n, p in small.items()}
    held = done.fed.federation.public
    clients = done.fed.federation
    rows = set(clients.train.rows.tolist()) | set(clients.test.rows.tolist()) | set(clients.pooled_test.tolist())
    assert not rows & set(held.tolist())


def test_learned_weights_lower_the_loss_on_public_rows() -> None:
    off, on = (
        toy.simulate({**OFF, "weight_epochs": e, "weight_lr": 0.01}, rounds=1, until=1, executor="vmap", **TWO)
        for e in (0, 3)
    )
    big, public = on.fed.task.of_family(0), on.fed.public()
    losses = [float(big.loss(r.state["model"], public).mean()) for r in (off, on)]
    assert losses[1] < losses[0]


def test_networks_that_are_no_narrower_copies_are_refused() -> None:
    other = {
        "large": {"name": "mlp", "hidden": [5], "share": 0.5},
        "small": {"name": "mlp", "hidden": [8], "share": 0.5},
    }
    with pytest.raises(FailsAgain, match=r"body\.0\.weight is .* at most as wide"):
        toy.simulate(OFF, rounds=1, until=1, **{**TWO, "task": {**TWO["task"], "model": other}})
