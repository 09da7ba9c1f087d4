"""Folds: what happens to a part of many replies without the replies travelling.

A fold runs where the cohort ran and gives a `Partial` (weighted total, weight); partials are merged on the way to the
server along a binary tree fixed by cohort number, so neither the number of actors nor the order of arrival changes a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed import tree
from rayfed.errors import FailsAgain
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree


class Fold(NamedTuple):
    """Describe how a part of many replies is aggregated; made by `mean` and `total`.

    kind: mean | sum; weight: "examples", "one", or the name of a scalar part (of the reply or of `mine`); by: the name of an integer
    part (likewise) that sorts replies into separate folds; denominator: fixed instead of the weights' sum;
    exact: whether the part holds whole numbers, weighted already, whose sum modulo 2^64 is wanted to the bit.
    """

    kind: str
    part: str
    weight: str = "examples"
    by: str | None = None
    denominator: float | None = None
    exact: bool = False


def mean(part: str, weight: str = "examples", by: str | None = None, denominator: float | None = None) -> Fold:
    """Return the fold that gives the weighted mean of a part over the replies.

    Arguments:
        part: its name in `wire.up`.
        weight: "examples" (n_i), "one", or the name of a scalar part, of the reply or of `mine` (what the server gave the client).
        by: the name of an integer part, of the reply or of `mine`: one mean for each of its values.
        denominator: what the weighted sum is divided by, in place of the sum of the weights (q N, say).

    `Replies.folded[part]` is then a tree of the part's shape, with `by` {value: tree}; `Replies.weight[part]` is the sum of the
    weights, likewise. Of no reply it is zeros of the declared shape and weight 0, with `by` {}; RunFailed where it is read if the
    shape has no zero (`ANY`). Where replies came and their weights sum to 0 there is no mean: the run ends with a sentence.

    Example: two calls, merged as on the way to the server.

        >>> fold = mean("x", weight="one")
        >>> here = partial(fold, {"x": torch.tensor([1.0, 2.0])}, mine={}, examples=torch.tensor([5, 7]))
        >>> there = partial(fold, {"x": torch.tensor([6.0])}, mine={}, examples=torch.tensor([9]))
        >>> finish(fold, merge(here, there))
        (tensor(3.), 3.0)
    """
    return Fold("mean", part, weight, by, denominator)


def total(part: str, weight: str = "one", by: str | None = None) -> Fold:
    """Return the fold that gives the weighted sum of a part over the replies. Arguments and what it gives as in `mean`.

    Example: a sum for each cluster.

        >>> fold = total("x", by="cluster")
        >>> parts = {"x": torch.tensor([1.0, 2.0, 4.0]), "cluster": torch.tensor([0, 3, 0])}
        >>> finish(fold, partial(fold, parts, mine={}, examples=torch.tensor([5, 7, 9])))
        ({0: tensor(5.), 3: tensor(2.)}, {0: 2.0, 3: 1.0})
    """
    return Fold("sum", part, weight, by)


Partial = dict[str, Any]  # {"total": tree, "weight": float, and of counters "largest": tree} per key; "" without `by`


def partial(
    fold: Fold,
    parts: Tree,
    mine: Tree,
    examples: Tensor,
    onto: dict[str, Partial] | None = None,
    counters: Sequence[str] = (),
) -> dict[str, Partial]:
    """Fold one chunk of replies, leaves (c, ...): key -> Partial. onto: what the call's chunks before gave, written over;
    counters: names of entries that are whole numbers (`Task.counters`): a mean takes the largest of them."""
    part = parts[fold.part]
    n = examples.shape[0]
    if fold.weight == "examples":
        w = examples.to(torch.float64)
    elif fold.weight == "one":
        w = torch.ones(n, dtype=torch.float64, device=examples.device)
    else:
        w = (parts if fold.weight in parts else mine)[fold.weight].to(torch.float64)
    out = onto or {}
    if fold.exact:
        out[""] = _summed(w, part, out.get(""))
        return out
    if fold.by is None:
        out[""] = _weighted(w, part, out.get(""), _counters(fold, part, counters))
        return out
    keys = (parts if fold.by in parts else mine)[fold.by].to(torch.int64)
    for k in torch.unique(keys):
        key = str(int(k))
        of_key = torch.where(keys == k, w, torch.zeros_like(w))
        out[key] = _weighted(of_key, part, out.get(key), _counters(fold, part, counters))
    return out


def _counters(fold: Fold, part: Tree, counters: Sequence[str]) -> list[str]:
    return [n for n in counters if fold.kind == "mean" and isinstance(part, Mapping) and n in part]


def _summed(w: Tensor, part: Tree, onto: Partial | None) -> Partial:
    """Return the plain sum over the first axis, added to `onto`."""
    total = tree.map(lambda x: x.sum(0), part)
    if onto is None:
        return {"total": total, "weight": float(w.sum())}
    return {"total": tree.add(onto["total"], total), "weight": onto["weight"] + float(w.sum())}


def _weighted(w: Tensor, part: Tree, onto: Partial | None, counters: Sequence[str]) -> Partial:
    """Return the weighted sum over the first axis, added to `onto` in one pass over memory."""

    def first(x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(torch.float64)
        if len(w) == 1:
            return x[0] * w[0].to(x.dtype)
        return (w.to(x.dtype) @ x.reshape(x.shape[0], -1)).reshape(x.shape[1:])

    def more(t: Tensor, x: Tensor) -> Tensor:
        x, v = x.to(t.dtype), w.to(t.dtype)
        if len(v) == 1:
            return t.addcmul_(x[0], v[0])
        t.view(-1).addmv_(x.reshape(len(v), -1).T, v)
        return t

    if onto is None:
        out = {"total": tree.map(first, part), "weight": float(w.sum())}
    else:
        out = {"total": tree.map(more, onto["total"], part), "weight": onto["weight"] + float(w.sum())}
    if counters:
        found = largest(w[None], {n: part[n] for n in counters})
        out["largest"] = _larger((onto or {}).get("largest"), {n: x[0] for n, x in found.items()})
    return out


def largest(weights: Tensor, part: Tree) -> Tree:
    """Return the largest of the rows that have a weight, (K, ...), of leaves (n, ...); minus infinity where none has.

    That is how whole numbers are aggregated, whatever the weights (K, n): a mean of counters would count nothing.
    """

    def rows(x: Tensor) -> Tensor:
        has = (weights != 0).reshape(*weights.shape, *(1,) * (x.dim() - 1))
        return torch.where(has, x[None], -torch.inf).amax(1)

    return tree.map(rows, part)


def _larger(a: Tree | None, b: Tree | None) -> Tree:
    return tree.map(torch.maximum, a, b) if a and b else a or b or {}


def add_combined(a: Tree, b: Tree, counters: Sequence[str]) -> Tree:
    """Return the sum of two weighted sums of rows, and the larger of their counters."""
    found = [n for n in counters if n in a]
    return {**tree.add(a, b), **{n: torch.maximum(a[n], b[n]) for n in found}} if found else tree.add(a, b)


def counted(part: Tree, counters: Sequence[str]) -> Tree:
    """Return an aggregate whose counters do not move where no row had a weight."""
    found = {n: torch.where(torch.isinf(part[n]), 0.0, part[n]) for n in counters if n in part}
    return {**part, **found} if found else part


def merge(a: dict[str, Partial], b: dict[str, Partial]) -> dict[str, Partial]:
    """Merge two partials of neighbouring cohorts, left first."""
    out = dict(a)
    for k, p in b.items():
        if k in out:
            both = {"total": tree.add(out[k]["total"], p["total"]), "weight": out[k]["weight"] + p["weight"]}
            found = _larger(out[k].get("largest"), p.get("largest"))
            p = {**both, "largest": found} if found else both
        out[k] = p
    return out


Folded = dict[str, dict[str, Partial]]  # what one call's folds gave: part -> key -> Partial


def merge_parts(a: Folded, b: Folded) -> Folded:
    """Merge all parts of two calls, left first; a call whose clients were all dropped has none."""
    return {part: merge(a.get(part, {}), b.get(part, {})) for part in {**a, **b}}


def from_numpy(folded: Folded) -> Folded:
    """Return the same with tensors; `to_numpy` is its inverse."""
    return {part: {k: _each_tree(tree.from_numpy, p) for k, p in by.items()} for part, by in folded.items()}


def to_numpy(folded: Folded) -> Folded:
    """Return the same as it travels between processes."""
    return {part: {k: _each_tree(tree.to_numpy, p) for k, p in by.items()} for part, by in folded.items()}


def _each_tree(f: Callable[[Tree], Tree], p: Partial) -> Partial:
    return {n: x if n == "weight" else f(x) for n, x in p.items()}


def nbytes(folded: Folded) -> int:
    """Return the size of the totals, bytes."""
    return sum(tree.nbytes(p["total"]) for by in folded.values() for p in by.values())


def finish(fold: Fold, partials: dict[str, Partial]) -> tuple[Any, Any]:
    """Return (folded, weight): trees, or per key {int: tree} and {int: float} where the fold has `by`.

    FailsAgain for a mean whose weights sum to 0, or whose denominator is 0.
    """

    def close(p: Partial, of: str = "") -> Tree:
        if fold.kind == "sum":
            return p["total"]
        if fold.denominator is not None:
            d, found = fold.denominator, f"the denominator of part {fold.part!r} is 0"
        else:
            d, found = p["weight"], f"the weights of part {fold.part!r}{of} sum to 0 (weight: {fold.weight!r})"
        if not d:
            raise FailsAgain(f"{found}; a mean over replies needs another sum")
        made = tree.scale(p["total"], 1.0 / d)
        return counted({**made, **p["largest"]}, tuple(p["largest"])) if "largest" in p else made

    if fold.by is None:
        return close(partials[""]), partials[""]["weight"]
    ordered = sorted(partials.items(), key=lambda kv: int(kv[0]))
    folded = {int(k): close(p, f" where {fold.by!r} is {k}") for k, p in ordered}
    return folded, {int(k): p["weight"] for k, p in ordered}


class Merger:
    """Merge things numbered 0..n-1 along one fixed binary tree, whatever order they come in; hold O(log n) of them
    when they come nearly in order."""

    def __init__(self, combine: Any):
        self.combine = combine
        self.held: dict[tuple[int, int], Any] = {}  # (level, index) -> merged subtree

    def add(self, index: int, value: Any, level: int = 0) -> None:
        """Take thing `index`, or from level 1 up a merged subtree of 2^level things; complete subtrees merge at once."""
        while (level, index ^ 1) in self.held:
            other = self.held.pop((level, index ^ 1))
            value = self.combine(other, value) if index & 1 else self.combine(value, other)
            level, index = level + 1, index >> 1
        self.held[level, index] = value

    def result(self) -> Any:
        """Return all merged, left to right; None if nothing came. What stays is one subtree per set bit of n."""
        out = None
        for place in sorted(self.held, reverse=True):
            out = self.held[place] if out is None else self.combine(out, self.held[place])
        return out
