"""CreamFL: weights and targets by hand, a server that clients do not move, clients that nobody teaches, families, bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.launch import task_check
from rayfed.methods import creamfl
from tests import toy

PAIRED: Any = {
    "task": {
        "data": {**toy.MODAL["task"]["data"], "features": 0},
        "kind": "retrieval",
        "model": {"name": "modalities", "dim": 4, "hidden": 6},
    },
    "federation": {
        **toy.MODAL["federation"],
        "public": {"rows": 12},
        "modalities": {"owners": {"image": 2, "text": 1, "image+text": 2}},
    },
    "local": {"epochs": 1},
}
ONCE: Any = {"executor": "vmap", "rounds": 1, "until": 1}


def test_weights_by_hand() -> None:
    """Two uploads of two pairs: where one matches its pair and the other does not, and where both are alike."""
    g = torch.eye(2)
    v = torch.stack([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])])
    a = creamfl.weights(v, g)
    good, bad = (torch.log_softmax(torch.tensor(x), 0)[0] for x in ([1.0, 0.0], [0.0, 1.0]))
    want = torch.softmax(torch.stack([good, bad]), 0)
    torch.testing.assert_close(a[:, 0], want)
    torch.testing.assert_close(a.sum(0), torch.ones(2))
    assert a[:, 1].tolist() == [0.5, 0.5]
    assert torch.equal(creamfl.ensemble(v[:1], g, "contrast"), v[0])
    same = torch.stack([v[0], v[0], v[0]])
    torch.testing.assert_close(creamfl.ensemble(same, g, "contrast"), v[0])


def test_permuted_pairs_give_permuted_targets() -> None:
    rng = torch.Generator().manual_seed(0)
    v, g = torch.randn(3, 5, 4, generator=rng), torch.randn(5, 4, generator=rng)
    turn = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        creamfl.ensemble(v[:, turn], g[turn], "contrast"), creamfl.ensemble(v, g, "contrast")[turn]
    )


def test_what_clients_are_taught_by_hand() -> None:
    s = creamfl.CreamFL.Settings(tau=1.0)
    e = torch.eye(2)
    v, old = e[None, None, 0].expand(1, 2, 2), e[None, None, 1].expand(1, 2, 2)
    g = torch.stack([e, e], 1)  # of pair j both features are e_j
    has, w, at = torch.tensor([True, False]), torch.ones(1), torch.tensor([0])
    one = torch.log1p(torch.exp(torch.tensor(-1.0)))
    torch.testing.assert_close(creamfl.taught(v, old, g, at, has, w, s), (one + one)[None])
    both = creamfl.taught(v, old, g, at, torch.tensor([True, True]), w, s)
    torch.testing.assert_close(both, (2 * one + one)[None])


def test_without_distillation_the_server_sees_no_client_and_without_contrast_clients_train_alone() -> None:
    asked: Any = {**PAIRED, "executor": "vmap"}
    off = toy.simulate({"name": "creamfl", "beta": 0.0}, **asked)
    other = toy.simulate({"name": "creamfl", "beta": 0.0, "gamma": 0.0}, **asked)
    assert tree.same(off.state, other.state)  # whatever clients do
    alone = toy.simulate("local_only", **asked)
    assert all(tree.same(s["model"], alone.clients()[c]["model"]) for c, s in other.clients().items())
    taught = toy.simulate("creamfl", **asked)
    assert not tree.same(taught.state, off.state) and "recall@1/global" in taught.scores()[0]


def test_bytes_are_those_of_features_and_no_part_has_a_parameters_name() -> None:
    done = toy.simulate("creamfl", **ONCE, **toy.merge(PAIRED, {"federation": {"per_round": 5}}))
    features = 12 * 4 * 4  # pairs, numbers, bytes
    assert done.rows[0]["bytes/up"] == (2 + 1 + 2 * 2) * features + 5 * 2 * 4
    assert done.rows[0]["bytes/down"] == 5 * (2 * features + 8)


def test_clients_of_two_architectures_and_a_server_of_the_first() -> None:
    families = {
        "small": {"name": "modalities", "dim": 4, "hidden": 6, "share": 0.5},
        "large": {"name": "modalities", "dim": 4, "hidden": 9, "share": 0.5},
    }
    asked: Any = {**PAIRED, "task": {**PAIRED["task"], "model": families}}
    done = toy.simulate("creamfl", **ONCE, **asked)
    assert done.state["model"]["encoders.image.1.weight"].shape[0] == 6
    shapes = {tuple(s["model"]["encoders.image.1.weight"].shape) for s in done.clients().values()}
    assert len(shapes) == 2 and done.scores()[0]["recall@1/global"] is not None


@pytest.mark.parametrize("changes", [{"federation": {"public": {"rows": 0}}}, {"task": {"kind": "modalities"}}])
def test_it_needs_public_pairs_and_two_sides(changes: Any) -> None:

    c = toy.config("creamfl", **toy.merge(PAIRED, changes))
    (problem,) = task_check.problems(c, toy.federation(c), methods.of(c))
    assert problem.startswith("method.name: creamfl needs ")
