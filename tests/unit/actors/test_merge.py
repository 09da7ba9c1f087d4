"""Folds merged on their nodes: the same bits as at the server, and what is lost is named."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch

from actors import merge
from rayfed import fold
from rayfed.engine.messages import CallResult
from rayfed.engine.pool import Merging, Outcome


def calls(n: int) -> list[fold.Folded]:
    """What n calls' folds gave, as it travels; call 2's clients were all dropped."""
    g = torch.Generator().manual_seed(0)
    made = [{"delta": {"": {"total": {"w": torch.randn(7, generator=g)}, "weight": float(i + 1)}}} for i in range(n)]
    return [fold.to_numpy({} if i == 2 else f) for i, f in enumerate(made)]


def result(folded: fold.Folded | None) -> CallResult:
    return CallResult([], {}, [], [], [], folded, {}, (), False, {}, 0, {}, 0.0)


class Store:
    """Objects of a cluster of which some nodes may be gone; `merged`: on which node each merge ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.gone: set[str] = set()
        self.merged: list[str] = []
        monkeypatch.setattr(merge.ray, "get", self.get)

    def get(self, ref: tuple[str, Any]) -> Any:
        if ref[0] in self.gone:
            raise ray.exceptions.RayError("lost")
        return ref[1]

    def merge(self, node: str, left: Any, right: Any) -> Any:
        self.merged.append(node)
        assert left[0] == right[0] == node
        return node, fold.to_numpy(fold.merge_parts(fold.from_numpy(left[1]), fold.from_numpy(right[1])))

    def outcome(self, node: str, folded: fold.Folded) -> Outcome:
        return Outcome(result(None), folded=merge.LocatedFolds((node, folded), node))


def plain(found: list[fold.Folded]) -> fold.Folded:
    m = Merging()
    for i, f in enumerate(found):
        m.add(i, Outcome(result(f)))
    return m.result()


def same(a: fold.Folded, b: fold.Folded) -> bool:
    x, y = a["delta"][""], b["delta"][""]
    return torch.equal(x["total"]["w"], y["total"]["w"]) and x["weight"] == y["weight"]


@pytest.mark.parametrize("seed", range(4))
def test_the_bits_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    found, store = calls(13), Store(monkeypatch)
    g = torch.Generator().manual_seed(seed)
    nodes = [["a", "b", "c"][int(i)] for i in torch.randint(3, (13,), generator=g)]
    merging = merge.NodeMerging(store.merge)
    for i in torch.randperm(13, generator=g).tolist():
        merging.add(i, store.outcome(nodes[i], found[i]))
    assert merging.lost() == []
    assert same(merging.result(), plain(found))


def test_neighbours_merge_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 calls in two halves: one sum of each node travels."""
    found, store = calls(16), Store(monkeypatch)
    merging = merge.NodeMerging(store.merge)
    for i, f in enumerate(found):
        merging.add(i, store.outcome("a" if i < 8 else "b", f))
    assert merging.lost() == [] and same(merging.result(), plain(found))
    assert (store.merged.count("a"), store.merged.count("b")) == (7, 7)
    assert merging.moved == 2 * 7 * 4  # bytes of two trees of 7 float32


def test_what_a_dead_node_held_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found, store = calls(11), Store(monkeypatch)
    merging = merge.NodeMerging(store.merge)
    for i, f in enumerate(found):
        merging.add(i, store.outcome("a" if i < 6 else "b", f))
    store.gone.add("b")
    again = merging.lost()
    assert sorted(again) == list(range(6, 11))
    for i in again:
        merging.add(i, store.outcome("a", found[i]))
    assert merging.lost() == [] and same(merging.result(), plain(found))
