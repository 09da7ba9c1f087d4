"""FL-TAC: k-means of the clients' adapters, a mean for each cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import Watched

OnBert = Callable[[dict[str, Any]], dict[str, Any]]
GROUPS = {
    "federation": {"per_round": 6, "partition": {"kind": "iid"}, "groups": {"kind": "label_permutation", "count": 3}}
}


@pytest.mark.skipif("fedit" not in methods.names(), reason="compared with fedit, which is not there")
def test_one_cluster_is_fedit(on_bert: OnBert) -> None:
    ours = toy.simulate({"name": "fl_tac", "clusters": 1}, dtype="float64", **on_bert({"federation": {"per_round": 6}}))
    plain = toy.simulate("fedit", dtype="float64", **on_bert({"federation": {"per_round": 6}}))
    first = ours.fed.task.initial
    assert list(ours.state["experts"]) == ["0"]
    assert tree.same(first, plain.initial["model"])
    torch.testing.assert_close(ours.state["experts"]["0"], plain.state["model"], rtol=1e-10, atol=1e-12)


def test_each_cluster_has_the_mean_of_its_members(on_bert: OnBert) -> None:
    done = toy.simulate("fl_tac", rounds=1, dtype="float64", kind=Watched, **on_bert({"federation": {"per_round": 6}}))
    got, first = done.fed.got[-1], done.fed.task.initial
    assigned = done.state["assignment"][got.ids].numpy()
    assert set(assigned) == {int(k) for k in done.state["experts"]} == {0, 1, 2}
    n = got.examples.numpy()
    for k, expert in done.state["experts"].items():
        mine = np.flatnonzero(assigned == int(k))
        for name, p in first.items():
            rows = got.stacked("delta")[name].numpy()[mine]
            want = p.numpy() + np.tensordot(n[mine] / n[mine].sum(), rows, 1)
            np.testing.assert_allclose(expert[name].numpy(), want, rtol=1e-10, atol=1e-12)


def test_members_are_those_nearest_to_their_mean(on_bert: OnBert) -> None:
    """What Lloyd's steps end in: no adapter is nearer to another cluster's mean, over A and B."""
    done = toy.simulate({"name": "fl_tac", "weight": "one"}, rounds=1, dtype="float64", kind=Watched, **on_bert(GROUPS))
    got, first = done.fed.got[-1], done.fed.task.initial
    pairs = [n for n in first if lora.is_a(n) or lora.is_b(n)]

    def flat(t: Any) -> np.ndarray:
        return np.concatenate([np.asarray(t[n]).ravel() for n in pairs])

    points = np.stack([flat({n: first[n] + d[n] for n in pairs}) for d in tree.unstack(got.stacked("delta"))])
    centres = np.stack([flat(done.state["experts"][str(k)]) for k in range(3)])
    nearest = np.square(points[:, None] - centres).sum(2).argmin(1)
    assert nearest.tolist() == done.state["assignment"][got.ids].tolist()


def test_clusters_keep_the_name_of_the_nearest_mean_of_before(on_bert: OnBert) -> None:
    """Of all ways to name the three at once the one with the least squared distances."""
    before, after = (
        toy.simulate("fl_tac", rounds=r, dtype="float64", **on_bert(GROUPS)).state["experts"] for r in (1, 2)
    )
    pairs = [n for n in before["0"] if lora.is_a(n) or lora.is_b(n)]
    apart = [[sum(float((after[a][n] - before[b][n]).square().sum()) for n in pairs) for b in "012"] for a in "012"]
    costs = {p: sum(apart[i][j] for i, j in enumerate(p)) for p in itertools.permutations(range(3))}
    assert min(costs, key=costs.__getitem__) == (0, 1, 2) and len(set(costs.values())) > 1
