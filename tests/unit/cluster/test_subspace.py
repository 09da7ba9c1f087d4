"""Angles between subspaces by hand and against SciPy, the clusters made of them, bases against NumPy."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import cluster
from rayfed.cluster import MISSING, canonical, subspace
from tests import toy
from tests.unit.cluster.evidence import of_exchange


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
    found = cluster.make({"kind": "subspace"}).labels(of_exchange(bases=[e[:, :1], None, e[:, 1:2], e[:, :1]]), 2)
    assert found[1] == MISSING and canonical(found[[0, 2, 3]]).tolist() == [0, 1, 0]
    assert cluster.make({"kind": "subspace"}).labels(of_exchange(bases=[None, None]), 2).tolist() == [MISSING] * 2


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
