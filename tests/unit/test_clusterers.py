"""Clusterers that read updates or inputs (k-means, bipartition, subspace) by hand, by brute force and against NumPy."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rayfed import cluster
from rayfed.cluster import MISSING, Evidence, bipartition, canonical, subspace
from rayfed.cluster.kmeans import kmeans
from tests import toy


def never(*_: Any) -> Any:
    raise AssertionError("asked for evidence that costs an exchange")


def evidence(updates: Any = None, bases: Any = None) -> Evidence:
    n = len(updates if updates is not None else bases)
    more: dict[str, Any] = {"gram": never, "bases": never, "key": 7}
    if updates is not None:
        u = torch.as_tensor(np.asarray(updates, float))
        more["gram"] = lambda: u @ u.T
    if bases is not None:
        more["bases"] = lambda: {c: torch.as_tensor(np.asarray(b)) for c, b in enumerate(bases) if b is not None}
    return Evidence(list(range(n)), torch.eye(n), torch.ones(n, 2), never, never, **more)


def labels(spec: Any, e: Evidence, clusters: int = 3) -> list[int]:
    return canonical(cluster.make(spec).labels(e, clusters)).tolist()


def test_a_method_without_the_evidence_says_so() -> None:
    bare = Evidence([0, 1], torch.eye(2), torch.ones(2, 2), never, never)
    for kind, what in (("kmeans", "updates"), ("bipartition", "updates"), ("subspace", "bases")):
        with pytest.raises(TypeError, match=what):
            labels({"kind": kind}, bare)


# -- k-means -----------------------------------------------------------------------------------------------------------


def spread(x: np.ndarray, found: Any, w: Any = None) -> float:
    """Weighted sum of squares about the clusters' weighted means."""
    w = np.ones(len(x)) if w is None else w
    found = np.asarray(found)
    return sum(
        float((w[m, None] * (x[m] - np.average(x[m], axis=0, weights=w[m])) ** 2).sum())
        for m in (found == k for k in set(found.tolist()))
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_the_best_of_all_partitions(weighted: bool) -> None:
    """Three bundles far from the origin, from their inner products; 3^7 partitions tried one by one."""
    rng = np.random.default_rng(0)
    x = 50 + rng.normal(size=(7, 4)) + 4 * np.eye(4)[[0, 1, 2, 0, 1, 2, 0]]
    w = rng.integers(1, 9, 7).astype(float) if weighted else None
    best = min(product(range(3), repeat=7), key=lambda p: spread(x, p, w))
    got = kmeans(torch.as_tensor(x @ x.T), 3, 5, weight=w)
    assert got.tolist() == canonical(np.array(best)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_kmeans_weights_decide() -> None:
    """0, 1 and 2.1 on a line, two clusters: equal weights split off 2.1; a heavy 1 and 2.1 split off nothing but 0."""
    x = np.array([[0.0], [1.0], [2.1], [2.1]])
    assert kmeans(torch.as_tensor(x @ x.T), 2, 0).tolist() == [0, 0, 1, 1]
    assert kmeans(torch.as_tensor(x @ x.T), 2, 0, weight=np.array([99.0, 1.0, 0.1, 0.1])).tolist() == [0, 1, 1, 1]


def test_kmeans_of_few_and_through_the_registry() -> None:
    x = np.eye(4)
    assert kmeans(torch.as_tensor(x[:2] @ x[:2].T), 3, 0).tolist() == [0, 1]
    assert kmeans(torch.as_tensor(x @ x.T), 1, 0).tolist() == [0, 0, 0, 0]
    u = np.random.default_rng(1).normal(size=(9, 5)) + 20 * np.eye(5)[[0, 0, 1, 1, 2, 2, 0, 1, 2]]
    assert labels({"kind": "kmeans"}, evidence(u)) == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    order = np.random.default_rng(2).permutation(9)
    want = canonical(np.array([0, 0, 1, 1, 2, 2, 0, 1, 2])[order]).tolist()
    assert labels({"kind": "kmeans"}, evidence(u[order])) == want


# -- bipartition -------------------------------------------------------------------------------------------------------


def cut(updates: Any, scale: float = 1.0, weight: Any = None, **settings: Any) -> list[int] | None:
    u = np.asarray(updates, float)
    found = bipartition.bipartition(u @ u.T, bipartition.Settings(**settings), scale, weight)
    return None if found is None else found.tolist()


def test_bipartition_by_hand() -> None:
    """Two pairs that pull apart: mean (0, 0.1), norm 0.1; norms sqrt(1.01)."""
    u = [[1, 0.1], [-1, 0.1], [1, 0.1], [-1, 0.1]]
    assert cut(u, relative=False, eps_1=0.11, eps_2=1.0) == [0, 1, 0, 1]
    assert cut(u, relative=False, eps_1=0.09, eps_2=1.0) is None  # the mean still moves
    assert cut(u, relative=False, eps_1=0.11, eps_2=1.01) is None  # nobody moves any more
    share = 0.1 / math.sqrt(1.01)
    assert cut(u, 2.0, eps_1=share * 1.01, eps_2=0.5) == [0, 1, 0, 1]
    assert cut(u, 2.0, eps_1=share * 0.99, eps_2=0.5) is None
    assert cut(u, 2.0, eps_1=share * 1.01, eps_2=0.51) is None  # largest norm 1.005 against 0.51 * 2
    assert cut(u[:2], eps_1=1.0, eps_2=0.0) is None  # two members are never cut


def test_bipartition_weights_the_mean() -> None:
    u = [[1.0], [1.0], [-2.0]]
    assert cut(u, relative=False, eps_1=0.01, eps_2=1) == [0, 0, 1]
    assert cut(u, relative=False, eps_1=0.01, eps_2=1, weight=[1, 1, 2]) is None  # mean -0.5
    assert cut(u, relative=False, eps_1=0.51, eps_2=1, weight=[1, 1, 2]) == [0, 0, 1]


def test_the_cut_is_sattlers() -> None:
    """Complete linkage on two clusters, merged one pair at a time; every cut leaves somebody on both sides."""
    for seed in range(20):
        u = np.random.default_rng(seed).normal(size=(8, 3))
        c = bipartition.cosines(u @ u.T)
        assert np.array_equal(c, c.T) and (np.diag(c) == 1).all() and (abs(c) <= 1).all()
        groups = [[i] for i in range(8)]
        while len(groups) > 2:
            a, b = min(
                ((a, b) for a in range(len(groups)) for b in range(a)),
                key=lambda ab: max(1 - c[i, j] for i in groups[ab[0]] for j in groups[ab[1]]),
            )
            groups[b] += groups.pop(a)
        want = [0 if (i in groups[0]) == (0 in groups[0]) else 1 for i in range(8)]
        assert cut(u, relative=False, eps_1=99, eps_2=0) == want
        assert set(want) == {0, 1}


def test_bipartition_cuts_until_members_agree() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    corners = np.array([[1.0, 0, -1], [-1, 1, 0], [0, -1, 1]])
    u = corners[truth] + 0.05 * rng.normal(size=(12, 3))
    assert labels({"kind": "bipartition", "eps_1": 0.6}, evidence(u), 1) == truth.tolist()
    assert labels({"kind": "bipartition", "eps_1": 0.001}, evidence(u), 5) == [0] * 12
    assert labels({"kind": "bipartition"}, evidence(np.zeros((4, 3)))) == [0] * 4
    assert labels({"kind": "bipartition"}, evidence(np.zeros((0, 3)))) == []


# -- subspaces ---------------------------------------------------------------------------------------------------------


def how(**changes: Any) -> Any:
    return subspace.Settings(**changes)


def test_angles_of_planes_by_hand() -> None:
    """Spans of (e1, e2) and of (e1, e3 turned to e2 by 60 degrees): principal angles 0 and 60."""
    s = math.sqrt(3) / 2
    a, b = np.eye(3)[:, :2], np.array([[1, 0], [0, 0.5], [0, s]])
    bases = torch.as_tensor(np.stack([a, b]))
    for angles, measure, want in (
        ("principal", "smallest", 0.0), ("principal", "sum", 60.0), ("entries", "smallest", 0.0), ("entries", "sum", 60.0),
    ):  # fmt: skip
        assert subspace.proximity(bases, how(angles=angles, measure=measure))[0, 1] == pytest.approx(want, abs=1e-5)
    # the same planes with other columns: principal angles stay, entries do not
    turned = torch.as_tensor(np.stack([a, b[:, ::-1].copy()]))
    assert subspace.proximity(turned, how(angles="principal"))[0, 1] == pytest.approx(60, abs=1e-5)
    assert subspace.proximity(turned, how(angles="entries"))[0, 1] == pytest.approx(180, abs=1e-5)


def test_principal_angles_are_scipys() -> None:
    from scipy.linalg import subspace_angles

    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 12, 4))  # columns that are not orthonormal
    got = {m: subspace.proximity(torch.as_tensor(x), how(angles="principal", measure=m)) for m in ("sum", "smallest")}
    for i, j in product(range(5), repeat=2):
        want = np.rad2deg(subspace_angles(x[i], x[j]))
        assert got["sum"][i, j] == pytest.approx(want.sum(), abs=1e-4)
        assert got["smallest"][i, j] == pytest.approx(want.min(), abs=1e-4)
    assert (np.diag(got["sum"]) == 0).all() and np.array_equal(got["sum"], got["sum"].T)


@pytest.mark.parametrize("angles", ["principal", "entries"])
def test_absent_classes(angles: str) -> None:
    """What only one has is at 90 degrees; what neither has does not count; nobody's data are at 90 from all."""
    e = np.eye(4)
    none = np.zeros(4)
    bases = torch.as_tensor(
        np.stack([np.stack(c, 1) for c in ([e[0], e[1], none], [e[0], none, none], [none, none, none])])
    )
    d = subspace.proximity(bases, how(angles=angles, measure="sum"))
    np.testing.assert_allclose(d, [[0, 90, 180], [90, 0, 90], [180, 90, 0]], atol=1e-5)
    d = subspace.proximity(bases, how(angles=angles, measure="smallest"))
    np.testing.assert_allclose(d, [[0, 0, 90], [0, 0, 90], [90, 90, 0]], atol=1e-5)


def test_thresholds() -> None:
    d = np.array([[0, 10, 40, 50], [10, 0, 60, 70], [40, 60, 0, 20], [50, 70, 20, 0]], float)
    for threshold, want in (
        (0, [0, 1, 2, 3]),
        (10, [0, 1, 2, 3]),
        (10.1, [0, 0, 1, 2]),
        (21, [0, 0, 1, 1]),
        (180, [0] * 4),
    ):
        assert subspace.group(d, how(threshold=threshold), 2).tolist() == want
    # merged last at (40 + 50 + 60 + 70) / 4 = 55; the median of the six is 45
    assert subspace.group(d, how(threshold=55.1), 9).tolist() == [0] * 4
    assert subspace.group(d, how(threshold=1.22, relative=True), 9).tolist() == [0, 0, 1, 1]
    assert subspace.group(d, how(threshold=1.23, relative=True), 9).tolist() == [0] * 4
    for linkage, at in (("complete", 70), ("single", 40), ("average", 55)):
        assert subspace.group(d, how(threshold=at, linkage=linkage), 9).tolist() == [0, 0, 1, 1]
        assert subspace.group(d, how(threshold=at + 0.1, linkage=linkage), 9).tolist() == [0] * 4
    for k in (1, 2, 3, 4, 9):
        assert len(set(subspace.group(d, how(), k))) == min(k, 4)
        assert len(set(subspace.group(np.ones((5, 5)) - np.eye(5), how(), k))) == min(k, 5)  # all at one distance
    assert subspace.group(np.zeros((1, 1)), how(), 3).tolist() == [0]
    assert subspace.group(np.zeros((3, 3)), how(threshold=0), 3).tolist() == [0, 1, 2]


def test_clients_without_a_basis_are_in_no_cluster() -> None:
    e = np.eye(4)
    found = cluster.make({"kind": "subspace"}).labels(evidence(bases=[e[:, :1], None, e[:, 1:2], e[:, :1]]), 2)
    assert found[1] == MISSING and canonical(found[[0, 2, 3]]).tolist() == [0, 1, 0]
    assert cluster.make({"kind": "subspace"}).labels(evidence(bases=[None, None]), 2).tolist() == [MISSING] * 2


def test_weighted_linkage_forgets_sizes() -> None:
    """0 and 1 merge, 2 joins them; for 3, (d(01,3) + d(2,3)) / 2 = (9 + 15) / 2 = 12, the mean over pairs is 11."""
    d = np.array([[0, 1, 4, 9], [1, 0, 4, 9], [4, 4, 0, 15], [9, 9, 15, 0]], float)
    for linkage, at in (("weighted", 12.0), ("average", 11.0)):
        assert subspace.group(d, how(linkage=linkage, threshold=at), 1).tolist() == [0, 0, 0, 1]
        assert subspace.group(d, how(linkage=linkage, threshold=at + 0.01), 1).tolist() == [0, 0, 0, 0]


def test_newcomers_join_by_the_linkage() -> None:
    d, known = np.array([[1.0, 9.0, 4.0], [9.0, 9.0, 8.0]]), np.array([2, 2, 5])
    for linkage, want in (("single", [2, 5]), ("average", [5, 5]), ("complete", [5, 5]), ("weighted", [5, 5])):
        assert subspace.join(d, known, how(linkage=linkage)).tolist() == want


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_bases_are_numpys(executor: str) -> None:
    """Class by class against numpy.linalg.svd, with classes absent and classes of fewer examples than columns."""
    c = toy.config({"name": "disue", "clusterer": {"kind": "subspace", "basis": 3}}, executor=executor, dtype="float64")
    fed = toy.make_fed(c)
    fed.begin(1)
    got = fed.ask(fed.method.bases, range(12)).gather("bases")
    short = 0
    for client, bases in got.items():
        rows = fed.federation.train[client]
        x, y = fed.federation.arrays["x"][rows].astype(float), fed.federation.arrays["y"][rows]
        for k in range(4):
            mine = bases[:, 3 * k : 3 * k + 3].numpy()
            here = min(3, int((y == k).sum()))
            short += here < 3
            if here:
                u = np.linalg.svd(x[y == k].T)[0][:, :here]
                u *= np.sign(u[abs(u).argmax(0), range(here)])
                np.testing.assert_allclose(mine[:, :here], u, atol=1e-9)
            assert not mine[:, here:].any()
    assert short > 5
    assert fed.meter["bytes/up"] == 12 * 8 * (8 * 12)


def test_unknown_settings_are_refused() -> None:
    for spec in (
        {"kind": "subspace", "measure": "mean"},
        {"kind": "bipartition", "eps_1": 0},
        {"kind": "kmeans", "k": 3},
    ):
        with pytest.raises(ValidationError):
            cluster.make(spec)


def test_disue_sends_bases_once() -> None:
    """The second round's clients that took part before do not send theirs again; the partition is that of all bases."""
    spec = {"name": "disue", "clusterer": {"kind": "subspace", "basis": 2}, "distill": False}
    with_bases, without = (
        toy.simulate(s, executor="vmap", rounds=2) for s in (spec, {**spec, "clusterer": {"kind": "agglomerative"}})
    )
    first, second = (d.ids for d in with_bases.fed.drawn)
    new = set(second) - set(first)
    assert new and set(second) & set(first)
    size = 4 * 8 * (4 * 2)
    more = [a["bytes/up"] - b["bytes/up"] for a, b in zip(with_bases.rows, without.rows, strict=True)]
    assert more == [len(first) * size, len(new) * size]


def test_disue_asks_the_clusterer_with_the_updates() -> None:
    """kmeans of DisUE's round is k-means of the updates themselves."""
    spec = {"name": "disue", "clusterer": "kmeans", "clusters": 2, "distill": False}
    done = toy.simulate(spec, executor="vmap", rounds=1, dtype="float64")
    fed = toy.make_fed(toy.config(spec, executor="vmap", dtype="float64"))
    fed.begin(1)
    got = fed.ask(fed.method.train, fed.sample(), shared={"model": done.initial["model"]})
    x = np.stack([np.concatenate([v.numpy().ravel() for v in d.values()]) for d in got.gather("delta").values()])
    best = min(product(range(2), repeat=7), key=lambda p: spread(x, p))
    found = [done.state["assignment"].tolist()[c] for c in got.ids]
    assert canonical(np.array(found)).tolist() == canonical(np.array(best)).tolist()
