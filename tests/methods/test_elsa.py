"""ELSA: fingerprints, trust and edges by hand, and the hierarchy against a flat mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods.elsa import assign, distances, symmetric_kl, trust
from tests import toy
from tests.tiny import Watched

PUBLIC: dict[
    str, Any
] = {  # whole batches: the order of rows, which the first round's second ask draws anew, changes nothing
    "federation": {"public": {"rows": 12}, "per_round": 5},
    "local": {"batch_size": 64},
}
FLAT = {"name": "elsa", "edges": 1, "beta": 0.0, "cloud_every": 1, "warm_steps": 1, "dims": 2}


def test_divergences_are_those_of_normal_distributions() -> None:
    """Against draws: the mean of log p_n - log p_m; and by hand, N(0, 1) and N(1, 4): (1/2)(1/4 + 1/4 + 4 + 1 - 2) / 2 = 7/8."""
    one = symmetric_kl(np.array([[0.0], [1.0]]), np.array([[[1.0]], [[4.0]]]))
    np.testing.assert_allclose(one, [[0, 0.875], [0.875, 0]], atol=1e-12)
    rng = np.random.default_rng(0)
    mu, root = rng.normal(size=(2, 2)), rng.normal(size=(2, 2, 2)) / 2 + np.eye(2)
    sigma = root @ root.transpose(0, 2, 1)

    def log(x: np.ndarray, n: int) -> np.ndarray:
        gap = x - mu[n]
        return -0.5 * (np.einsum("bi,ij,bj->b", gap, np.linalg.inv(sigma[n]), gap) + np.log(np.linalg.det(sigma[n])))

    drawn = [rng.normal(size=(200_000, 2)) @ root[n].T + mu[n] for n in (0, 1)]
    numeric = sum((log(drawn[n], n) - log(drawn[n], 1 - n)).mean() for n in (0, 1)) / 2
    found = symmetric_kl(mu, sigma)
    assert found[0, 1] == pytest.approx(found[1, 0]) == pytest.approx(numeric, rel=0.03)


def test_trust_by_hand() -> None:
    """Two agree and one says the opposite for sure: its divergence from the median is log 2, and exp(-log 2) is a half."""
    p = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(trust(p, 1.0, "median"), [1.0, 1.0, 0.5])
    assert (trust(p, 0.0, "mean") == 1).all() and trust(p, 1.0, "mean")[2] < trust(p, 1.0, "mean")[0]


def test_clients_join_who_is_like_them_or_near_while_there_is_room() -> None:
    apart = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0.0]])
    near = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    tau = np.ones(4)
    like = assign(apart, near, tau, (1, 0, 0), 4)
    assert like[0] == like[1] != like[2] == like[3]
    assert assign(apart, near, tau, (0, 1, 0), 4).tolist() == [1, 0, 0, 1]
    crowded = assign(np.zeros((4, 4)), np.tile([0.0, 1.0], (4, 1)), tau, (0, 1, 0), 3)
    assert sorted(crowded.tolist()) == [0, 0, 0, 1]
    assert distances(3, 2, 5).shape == (3, 2)


@pytest.fixture(scope="module")
def flat() -> Any:
    return toy.simulate(FLAT, rounds=2, dtype="float64", **PUBLIC)


def test_one_edge_and_full_trust_are_fedavg(flat: Any) -> None:
    average = toy.simulate("fedavg", rounds=2, dtype="float64", **PUBLIC)
    for a, b in zip(tree.values(flat.state["model"]), tree.values(average.state["model"]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_edges_take_means_by_trust_and_the_cloud_those_of_edges() -> None:
    settings = {**FLAT, "edges": 2, "beta": 2.0, "tau_min": 0.0, "cloud_every": 2}
    done = toy.simulate(settings, rounds=1, dtype="float64", kind=Watched, **PUBLIC)
    after = toy.simulate(settings, rounds=2, dtype="float64", kind=Watched, **PUBLIC)
    got = done.fed.got[-1]
    deltas, first = got.gather("delta"), done.initial["model"]
    for k in range(2):
        theirs = [r for r in got if int(done.state["edge"][r.client]) == k]
        w = torch.tensor([float(done.state["trust"][r.client]) * r.examples for r in theirs], dtype=torch.float64)
        for n, p in first.items():
            step = sum(x * deltas[r.client][n] for x, r in zip(w / w.sum(), theirs, strict=True)) if theirs else 0
            torch.testing.assert_close(done.state["models"][n][k], p + step)
    assert tree.same(done.state["model"], first) and "elsa/cloud_bytes" not in done.rows[0]
    assert after.rows[1]["elsa/cloud_bytes"] == 2 * 2 * tree.nbytes(first)
    assert all(torch.equal(x[0], x[1]) for x in after.state["models"].values())


def test_bytes_of_edges_have_what_crosses() -> None:
    split = {"task": {"split": {"after": ["body.1"]}}}
    row = toy.simulate({**FLAT, "tau_min": 0.0}, rounds=1, **toy.merge(PUBLIC, split))
    asked, size = len(row.fed.drawn[0].ids), tree.nbytes(row.state["model"])
    rows = sum(len(row.fed.federation.train[c]) for c in row.fed.drawn[0].ids)
    assert row.rows[0]["elsa/edge_bytes"] == 2 * asked * size + 2 * 2 * rows * 16 * 4


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"method.capacity: 2 found, 3 edges have no room for 12 clients then; allowed: at least 4"
    ):
        toy.config({"name": "elsa", "edges": 3, "capacity": 2}, **PUBLIC)
