"""Folds by hand, and merging whose bits depend on nothing but the numbers of the things merged."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import fold as folds
from rayfed import tree
from rayfed.errors import FailsAgain, RunFailed
from rayfed.fold import Merger, finish, mean, merge, partial, total
from tests import toy

N = torch.tensor([2, 6, 4])  # train examples
X = {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 12.0]]), "s": {"y": torch.tensor([10, 20, 60])}}


def once(fold: folds.Fold, parts: tree.Tree, mine: tree.Tree | None = None, n: torch.Tensor = N) -> Any:
    return finish(fold, partial(fold, parts, mine or {}, n))


def test_mean_by_hand() -> None:
    got, weight = once(mean("p"), {"p": X})
    # (2 * 1 + 6 * 3 + 4 * 5) / 12, (2 * 2 + 6 * 4 + 4 * 12) / 12, (20 + 120 + 240) / 12
    assert got["x"].tolist() == pytest.approx([40 / 12, 76 / 12]) and weight == 12.0
    assert (
        float(got["s"]["y"]) == pytest.approx(380 / 12) and got["s"]["y"].dtype == torch.float64
    )  # integers do not wrap
    assert got["x"].dtype == torch.float32


def test_other_weights_and_denominators() -> None:
    p = {"p": X["x"], "q": torch.tensor([0.5, 0.0, 1.5])}
    got, weight = once(mean("p", weight="one"), p)
    assert got.tolist() == [3.0, 6.0] and weight == 3.0
    got, weight = once(mean("p", weight="q"), p)
    assert got.tolist() == [4.0, 9.5] and weight == 2.0
    got, weight = once(mean("p", weight="one", denominator=6.0), p)
    assert got.tolist() == [1.5, 3.0] and weight == 3.0
    got, weight = once(total("p"), p)
    assert got.tolist() == [9.0, 18.0] and weight == 3.0
    got, _ = once(total("p", weight="examples"), p)
    assert got.tolist() == [40.0, 76.0]


@pytest.mark.parametrize("where", ["reply", "mine"])
def test_by_sorts_replies_into_folds_of_their_own(where: str) -> None:
    key = {"k": torch.tensor([7, -1, 7], dtype=torch.int32)}
    p = {"p": X["x"]}
    got, weight = once(mean("p", by="k"), {**p, **key} if where == "reply" else p, key if where == "mine" else None)
    assert list(got) == [-1, 7] and weight == {-1: 6.0, 7: 6.0}
    assert got[-1].tolist() == [3.0, 4.0]
    assert got[7].tolist() == pytest.approx([22 / 6, 52 / 6])
    assert list(once(total("p", by="k"), {**p, **key})[0]) == [-1, 7]
    ten = {"k": torch.tensor([10, 9, 10])}  # as numbers, not as text
    assert list(once(mean("p", by="k"), {**p, **ten})[0]) == [9, 10]


def test_a_part_of_the_reply_is_preferred_as_key() -> None:
    got, _ = once(mean("p", by="k"), {"p": X["x"], "k": torch.tensor([0, 0, 0])}, {"k": torch.tensor([1, 1, 1])})
    assert list(got) == [0]


def test_huge_replies_of_one_key_do_not_touch_another() -> None:
    """Key 1 overflows; key 0 is what its only reply says."""
    key = {"k": torch.tensor([0, 1, 1])}
    huge = torch.tensor([[1.0], [1e38], [1e38]])
    assert once(mean("p", by="k", weight="one"), {"p": huge, **key})[0][0].tolist() == [1.0]


def test_merge_adds_key_by_key_and_changes_neither() -> None:
    a = {"0": {"total": torch.tensor([1.0]), "weight": 1.0}, "2": {"total": torch.tensor([5.0]), "weight": 2.0}}
    b = {"2": {"total": torch.tensor([7.0]), "weight": 4.0}, "1": {"total": torch.tensor([9.0]), "weight": 1.0}}
    got = merge(a, b)
    assert {k: (float(p["total"]), p["weight"]) for k, p in got.items()} == {"0": (1, 1), "2": (12, 6), "1": (9, 1)}
    assert list(a) == ["0", "2"] and float(a["2"]["total"]) == 5 and float(b["2"]["total"]) == 7
    assert merge({}, b) == b and merge(a, {}) == a
    assert finish(mean("p", by="k"), got)[0][2].tolist() == [2.0]


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("cut", [[1, 2], [2, 1], [1, 1, 1]])
def test_pieces_fold_to_the_whole(cut: list[int], one_call: bool) -> None:
    for f in (mean("p"), total("p"), mean("p", by="k"), mean("p", weight="q")):
        parts = {"p": X, "k": torch.tensor([3, 3, 1]), "q": torch.tensor([1.0, 0.5, 2.0])}
        pieces = zip(*(torch.split(x, cut) for x in (parts["p"]["x"], parts["p"]["s"]["y"], parts["k"], parts["q"], N)))
        merged: Any = {}
        for x, y, k, q, n in pieces:
            given = {"p": {"x": x.clone(), "s": {"y": y}}, "k": k, "q": q}
            merged = partial(f, given, {}, n, merged) if one_call else merge(merged, partial(f, given, {}, n))
            assert torch.equal(given["p"]["x"], x)  # a sum goes on in its own memory
        a, b = once(f, parts), finish(f, merged)
        if f.by:
            assert a[1] == b[1] and list(a[0]) == list(b[0])
            pairs = [(a[0][k], b[0][k]) for k in a[0]]
        else:
            assert a[1] == b[1]
            pairs = [(a[0], b[0])]
        for x, y in pairs:
            assert all(torch.allclose(u, w) for u, w in zip(tree.values(x), tree.values(y), strict=True))


# -- merging -----------------------------------------------------------------------------------------------------------


def written(a: str, b: str) -> str:
    return f"({a} {b})"


def tree_of(n: int) -> str:
    """Complete trees of the largest powers of two, joined from the left."""
    at, out = 0, ""
    for size in (1 << b for b in reversed(range(n.bit_length())) if n >> b & 1):
        row = [str(i) for i in range(at, at + size)]
        while len(row) > 1:
            row = [written(a, b) for a, b in zip(row[::2], row[1::2], strict=True)]
        out, at = written(out, row[0]) if out else row[0], at + size
    return out


def test_the_tree_by_hand() -> None:
    m = Merger(written)
    assert m.result() is None
    for i in (3, 0, 6, 4, 1, 2, 5):
        m.add(i, str(i))
    assert m.result() == "((((0 1) (2 3)) (4 5)) 6)" == tree_of(7)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 8, 13, 31, 32])
def test_arrival_changes_nothing(n: int) -> None:
    draw = random.Random(n)
    outcomes = set()
    for _ in range(40):
        m, order = Merger(written), list(range(n))
        draw.shuffle(order)
        for i in order:
            m.add(i, str(i))
        outcomes.add(m.result())
        assert len(m.held) == bin(n).count("1")
    assert outcomes == {tree_of(n)}


def test_nearly_ordered_arrival_holds_few() -> None:
    m, most = Merger(written), 0
    for i in range(0, 1000, 2):
        m.add(i + 1, str(i + 1))
        m.add(i, str(i))
        most = max(most, len(m.held))
    assert most <= 11


@pytest.mark.parametrize("n", [4, 8, 12, 20, 28])
def test_complete_subtrees_may_be_merged_elsewhere(n: int) -> None:
    """What an actor or a node would do with its aligned runs of 4 leaves the whole as it was."""
    outer = Merger(written)
    for block in reversed(range(n // 4)):
        inner = Merger(written)
        for i in (2, 3, 0, 1):
            inner.add(i, str(4 * block + i))
        outer.add(block, inner.result())
    assert outer.result() == tree_of(n)


def awkward(n: int, seed: int = 0) -> list[tree.Tree]:
    """Partials whose sum depends on the order of additions in almost every bit."""
    rng = np.random.default_rng(seed)
    return [
        {"": {"total": {"w": torch.as_tensor((rng.normal(size=50) * 10.0 ** rng.integers(-8, 8, 50)).astype(np.float32))},
              "weight": float(rng.random())}}
        for _ in range(n)
    ]  # fmt: skip


def test_bits_of_sums_are_the_same_for_any_arrival() -> None:
    parts = awkward(37)

    def summed(order: list[int]) -> Any:
        m = Merger(merge)
        for i in order:
            m.add(i, parts[i])
        return m.result()[""]

    first = summed(list(range(37)))
    draw, in_a_row = random.Random(1), set()
    for _ in range(60):
        order = list(range(37))
        draw.shuffle(order)
        got = summed(order)
        assert torch.equal(got["total"]["w"], first["total"]["w"]) and got["weight"] == first["weight"]
        flat = parts[order[0]][""]["total"]["w"]
        for i in order[1:]:
            flat = flat + parts[i][""]["total"]["w"]
        in_a_row.add(tuple(flat.tolist()))
    assert len(in_a_row) > 1  # adding as they come would have shown
    exact = np.sum([p[""]["total"]["w"].double().numpy() for p in parts], axis=0)
    assert np.allclose(first["total"]["w"].numpy(), exact, rtol=1e-3)


def test_a_cohort_without_replies_keeps_its_place() -> None:
    """Dropped cohorts arrive as {}: the tree stays that of the cohort numbers."""
    parts = awkward(9, 3)
    parts[4] = parts[7] = {}
    outcomes = []
    for seed in range(20):
        order = list(range(9))
        random.Random(seed).shuffle(order)
        m = Merger(merge)
        for i in order:
            m.add(i, parts[i])
        outcomes.append(m.result()[""])
    assert all(torch.equal(o["total"]["w"], outcomes[0]["total"]["w"]) for o in outcomes)


# -- through a federation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_workers_and_arrival_change_no_bit(executor: str) -> None:
    plain = toy.simulate("fedavg", executor=executor)
    for workers, seed in ((1, 5), (2, 6), (7, 7), (4, 8)):
        pool = toy.SimPool(workers, seed)
        assert tree.same(toy.simulate("fedavg", executor=executor, pool=pool).state, plain.state)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_cohorts_of_any_size_are_the_same_mean(executor: str) -> None:
    """Cohorts are part of the plan, so their size may move the last bits, and only those."""
    runs = [
        toy.simulate("fedavg", executor=executor, dtype="float64", resources={"cohort": k}).state for k in (1, 2, 3, 7)
    ]
    for other in runs[1:]:
        assert float(tree.norm(tree.sub(runs[0]["model"], other["model"]))) < 1e-12


def test_nobody_asked_folds_to_zeros_with_weight_0() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    shared = {"model": fed.task.initial}
    got = fed.ask(fed.method.train, (), shared=shared, fold=mean("delta"))
    assert len(got) == 0 and got.weight["delta"] == 0.0 and got.gather("delta") == {}
    assert tree.same(got.folded["delta"], tree.zeros(fed.task.params_like))
    other = fed.ask(fed.method.train, (), shared=shared, fold=(mean("delta"), mean("any")))
    assert list(other.folded) == ["delta"] and other.weight["any"] == 0.0
    with pytest.raises(RunFailed, match="nobody replied and part 'any', declared 'any', has no zero to stand for it"):
        other.folded["any"]
    with pytest.raises(KeyError):
        other.folded["another"]
    by = fed.ask(fed.method.train, (), shared=shared, fold=mean("delta", by="k"))
    assert by.folded["delta"] == {} and by.weight["delta"] == {}


@pytest.mark.parametrize("q", [[0.0, 0.0], [1.0, -1.0]])
def test_weights_that_sum_to_zero_have_no_mean(q: list[float]) -> None:
    """Zeros would be a number like any other."""
    parts = {"x": torch.tensor([1.0, 2.0]), "q": torch.tensor(q), "k": torch.tensor([3, 3])}
    examples = torch.tensor([5, 7])
    for by, where in ((None, ""), ("k", " where 'k' is 3")):
        fold = mean("x", weight="q", by=by)
        said = f"the weights of part 'x'{where} sum to 0 (weight: 'q')"
        with pytest.raises(FailsAgain, match=re.escape(said)):
            finish(fold, partial(fold, parts, {}, examples))
    fold = total("x", weight="q")
    assert finish(fold, partial(fold, parts, {}, examples))[1] == 0.0, "a sum has no such need"
    fold = mean("x", denominator=0.0)
    with pytest.raises(FailsAgain, match="the denominator of part 'x' is 0"):
        finish(fold, partial(fold, parts, {}, examples))


def test_an_exact_fold_sums_whole_numbers_modulo_two_to_the_64() -> None:
    fold = total("p", weight="examples")._replace(exact=True)
    big = (1 << 62) + 5
    parts = {"p": {"x": torch.tensor([[big, 1], [big, 2], [big, -9]])}}
    here = partial(fold, {"p": {"x": parts["p"]["x"][:2]}}, {}, N[:2])
    here = partial(fold, {"p": {"x": parts["p"]["x"][2:]}}, {}, N[2:], here)
    (got, weight) = finish(fold, here)
    assert got["x"].tolist() == [3 * big - (1 << 64), -6] and weight == 12.0
    there = merge(
        partial(fold, {"p": {"x": parts["p"]["x"][:1]}}, {}, N[:1]),
        partial(fold, {"p": {"x": parts["p"]["x"][1:]}}, {}, N[1:]),
    )
    assert torch.equal(finish(fold, there)[0]["x"], got["x"])
