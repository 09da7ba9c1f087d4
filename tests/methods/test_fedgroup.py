"""FedGroup: the embedding against singular vectors, the step between groups by hand, rounds in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods.fedgroup import between, embed
from tests import toy

GROUP = [0, 1, 1, 0, 1, 0, 0, 1]
EVERYONE = {"clients": 8, "per_round": 4, "holdout": {"kind": "none"}}


def test_the_embedding_is_that_of_singular_vectors() -> None:
    u = np.random.default_rng(0).normal(size=(6, 9)) + 1
    v = np.linalg.svd(u.T)[0][:, :3]
    wanted = u @ v / np.linalg.norm(u, axis=1, keepdims=True)
    assert np.allclose(np.abs(embed(u @ u.T, 3)), np.abs(wanted), rtol=0, atol=1e-10)
    ours = embed(u @ u.T, 3)
    assert np.allclose(ours @ ours.T, wanted @ wanted.T, rtol=0, atol=1e-10)  # whatever their signs


def test_the_step_between_groups_by_hand() -> None:
    """Norms 5 and 2, eta 1: b = 0.2 and 0.5; c_1 <- (3 + 0.5 * 0, 4 + 0.5 * 2) / 1.5."""
    experts = {"0": {"w": torch.tensor([3.0, 4.0])}, "1": {"w": torch.tensor([0.0, 2.0])}}
    made = between(experts, 1.0)
    assert torch.allclose(made["0"]["w"], torch.tensor([2.0, 10 / 3])) and torch.allclose(
        made["1"]["w"], torch.tensor([0.5, 2.8 / 1.2])
    )
    assert between(experts, 0.0) == experts


@pytest.fixture
def opposite(split: Any) -> None:
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(24, 8)) for _ in GROUP]
    split(xs, [(x[:, 0] > 0).astype(int) ^ g for x, g in zip(xs, GROUP)], group=GROUP)


def test_rounds_in_numpy(plain: Any, opposite: Any) -> None:
    """Four of eight clients show their directions; the others join as they are asked."""
    method = {"name": "fedgroup", "clusters": 2, "pretrain": 5, "per_group": 2}
    done = toy.simulate(method, rounds=3, **toy.merge(plain.WORK, {"federation": EVERYONE}))
    start = plain.vector(done.initial["start"])

    def shown(i: int) -> np.ndarray:
        return plain.descend(start, *plain.data(done.fed, i), steps=5) - start

    assignment = done.state["assignment"].numpy()
    first, cold, *later = done.fed.drawn
    labels = assignment[list(cold.ids)]
    assert {tuple(labels == g) for g in (0, 1)} == {tuple(np.array(GROUP)[list(cold.ids)] == g) for g in (0, 1)}
    directions = [np.mean([shown(i) for i in cold.ids if assignment[i] == k], axis=0) for k in (0, 1)]
    models = [start + d for d in directions]
    for draw in (first, *later):
        for i in draw.ids:
            if i not in cold.ids:
                cosines = [shown(i) @ d / np.linalg.norm(d) for d in directions]
                assert assignment[i] == int(np.argmax(cosines))
        for k in (0, 1):
            mine = [i for i in draw.ids if assignment[i] == k]
            if mine:
                models[k] = np.mean([plain.descend(models[k], *plain.data(done.fed, i)) for i in mine], axis=0)
    for k in (0, 1):
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(k)]), models[k], atol=1e-10)


def test_one_group_is_fedavg_from_the_mean_of_the_first_updates() -> None:
    done = toy.simulate({"name": "fedgroup", "clusters": 1, "pretrain": 2, "per_group": 99}, executor="vmap", rounds=1)
    fed = done.fed
    begun = tree.add(done.initial["start"], tree.pick(done.state["directions"], 0))
    fed.begin(1)
    fed.dispatch._asks = 1  # the second ask of the round, as it was
    got = fed.ask(
        fed.method.train, fed.drawn[0].ids, shared={"experts": tree.stack([begun])},
        mine={c: {"place": torch.tensor(0)} for c in fed.drawn[0].ids}, keep="delta",
    )  # fmt: skip
    (mean,) = got.linear("delta", (got.examples / got.examples.sum())[None])
    ours, theirs = tree.flatten(done.state["experts"]["0"]), tree.flatten(tree.add(begun, mean))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_an_empty_group_attracts_nobody(opposite: Any) -> None:
    """Group 0 shows one kind's direction and group 1 none: the other kind, with negative cosines, joins the first too."""
    method = {"name": "fedgroup", "clusters": 2, "pretrain": 5, "per_group": 2}
    done = toy.simulate(method, rounds=1, federation=EVERYONE)
    d = tree.pick(done.state["directions"], 0)
    fed, state = done.fed, {**done.state, "directions": tree.stack([d, tree.zeros(d)])}
    fed.begin(2)
    assert not done.fed.method._join(state, fed, range(8))["assignment"].any()
