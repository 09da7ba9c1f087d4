"""A rule of aggregation in the place of means: the config's `aggregate`, under any method that folds an update.

A fold of a ruled part with kind mean is not folded where clients ran: its updates stay there, and the rule works on their inner
products, or on their coordinates block by block (see `rayfed.aggregate.Aggregator`). With `by` it rules each group by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import aggregate, attack, tree
from rayfed.aggregate import Evidence
from rayfed.errors import FailsAgain
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.engine.replies import UnfoldedParts
    from rayfed.fed import Replies
    from rayfed.fold import Fold
    from rayfed.method import Method
    from rayfed.task import Task
    from rayfed.tree import Tree

SKIPPED, ATTACKERS = "aggregate/skipped", "aggregate/attackers"

Zero = Callable[[str], Any]  # what a mean of a part over no reply is
Absent = Callable[[str, Any], None]  # puts that into folded parts


class Ruling:
    """The rule of one run at the server."""

    def __init__(self, config: Config, method: Method, rule: aggregate.Aggregator, buffers: Sequence[str]):
        """buffers: names of what training only writes."""
        self.buffers = buffers
        self.config, self.rule, self.parts = config, rule, aggregate.ruled(method)
        self.sums: dict[
            str, dict[str, Tensor]
        ] = {}  # with memory: parts -> client -> the sum of its updates so far, (P,)
        self._attackers = attack.everyone(config)
        self.begin(0)

    @classmethod
    def of(cls, config: Config, method: Method, task: Task) -> Ruling | None:
        """Return the rule of a config that is applied at the server; None for means, and for a rule that acts where clients run."""
        rule = aggregate.of(config)
        return None if rule is None or rule.needs == ("fold",) else cls(config, method, rule, task.buffers)

    def begin(self, round: int) -> None:
        """Begin a round."""
        self.round, self.skipped = round, 0
        self._theirs: list[float] = []  # of each ruling, what share of the weights attackers got

    def row(self) -> dict[str, float]:
        """Return what the round's row says of its rulings."""
        theirs = {ATTACKERS: float(np.mean(self._theirs))} if self._theirs else {}
        return {SKIPPED: float(self.skipped), **theirs}

    def takes(self, folds: Sequence[Fold]) -> tuple[Fold, ...]:
        """Return those of an ask's folds that the rule takes the place of. FailsAgain for a mean with a fixed denominator."""
        taken = tuple(f for f in folds if f.kind == "mean" and f.part in self.parts)
        if fixed := [f.part for f in taken if f.denominator is not None]:
            raise FailsAgain(
                f"aggregate.kind: {self.config.aggregate.kind} rules part {fixed[0]!r}, whose mean has a fixed denominator: "
                "that is for sums, which a rule has none of"
            )
        return taken

    def refuse_unruled(self, visit: str, folds: Sequence[Fold], unfolded: UnfoldedParts) -> None:
        """Raise FailsAgain where an ask brought a ruled part of which the method takes no mean: the rule would not be there."""
        sent = {f.part for f in folds} | {n for call in unfolded.calls for n in (*call.small, *call.names)}
        if found := sorted(sent & set(self.parts)):
            kind = self.config.aggregate.kind
            raise FailsAgain(
                f"aggregate.kind: {kind} found, but visit {visit!r} sends {found[0]!r} and the method takes no mean of it; allowed: mean"
            )

    def apply(
        self,
        folds: Sequence[Fold],
        got: Replies,
        unfolded: UnfoldedParts,
        mine: Mapping[int, Tree],
        zero: Zero,
        absent: Absent,
    ) -> None:
        """Put into `got.folded` and `got.weight` what the rule makes of the parts of these folds; mine: of the ask.

        Where fewer clients replied than the rule can judge there is no update: zeros of weight 0, or with `by` no entry.
        """
        alike: dict[tuple[str, str | None], list[str]] = {}
        for fold in folds:
            alike.setdefault((fold.weight, fold.by), []).append(fold.part)
        for (weight, by), parts in alike.items():
            if not got.ids:
                groups, weights = {}, np.zeros(0)
            else:
                groups, weights = _groups(by, got, unfolded, mine), _weights(weight, got, unfolded, mine)
            enough = {k: rows for k, rows in groups.items() if len(rows) >= self.rule.least}
            self.skipped += len(groups) - len(enough)
            made = (
                self._rule(parts, list(enough.values()), weights, np.array(got.ids), unfolded, zero) if enough else {}
            )
            for part in parts:
                by_group = dict(zip(enough, made.get(part, ()), strict=True))
                total = {k: float(weights[rows].sum()) for k, rows in enough.items()}
                if by is None:
                    got.weight[part] = total.get(0, 0.0)
                    if by_group:
                        got.folded[part] = by_group[0]
                    else:
                        absent(part, got.folded)
                else:
                    got.folded[part], got.weight[part] = by_group, total

    def _rule(
        self,
        parts: Sequence[str],
        groups: Sequence[np.ndarray],
        weights: np.ndarray,
        ids: np.ndarray,
        unfolded: UnfoldedParts,
        zero: Zero,
    ) -> dict[str, list[Tree]]:
        """Return part -> a tree for each group."""
        rule = self.rule
        if rule.by_tensor:
            return {part: self._rule_by_tensor(part, groups, weights, ids, unfolded) for part in parts}
        if "gram" not in rule.needs:
            return {part: unfolded.combine(part, zero(part), groups) for part in parts}
        now = (unfolded.gram(part).double().numpy() for part in parts)
        gram = self._remember(parts, ids, unfolded) if rule.memory else sum(now)
        found = self._coefficients(gram, groups, weights, ids)
        self._note(found, ids)
        if "rows" in rule.needs:
            return {part: _combine_chosen(part, found, unfolded, zero) for part in parts}
        return {part: self._linear(part, found, unfolded) for part in parts}

    def _linear(self, part: str, found: np.ndarray, unfolded: UnfoldedParts) -> list[Tree]:
        """Return the replies' sum by coefficients (G, n); a tree for each group."""
        out: list[Any] = unfolded.linear(part, torch.as_tensor(found))
        written = tuple(n for n in self.buffers if isinstance(out[0], Mapping) and n in out[0])
        if self.rule.sums_to_one or not written:
            return out
        used = found != 0
        means: Any = unfolded.linear(part, torch.as_tensor(used / np.maximum(used.sum(1, keepdims=True), 1)), written)
        return [{**t, **mean} for t, mean in zip(out, means, strict=True)]

    def _remember(self, parts: Sequence[str], ids: np.ndarray, unfolded: UnfoldedParts) -> np.ndarray:
        """Add the updates of the clients that replied to their sums; return the inner products of these, (n, n)."""
        entries = [tree.without(unfolded.stacked(part, ()), self.buffers) for part in parts]
        rows = torch.cat([x.flatten(1) for t in entries for x in tree.values(t)], 1).double()
        of = "+".join(parts)
        before = self.sums.get(of, {})
        now = {c: before[c] + row if c in before else row for c, row in zip(map(str, ids), rows, strict=True)}
        self.sums = {**self.sums, of: {**before, **now}}
        known = torch.stack(list(now.values()))
        return (known @ known.T).numpy()

    def _rule_by_tensor(
        self, part: str, groups: Sequence[np.ndarray], weights: np.ndarray, ids: np.ndarray, unfolded: UnfoldedParts
    ) -> list[Tree]:
        """Return a tree for each group, whose tensors are ruled each by itself; what training only writes has the plain mean."""
        grams: Any = unfolded.gram(part, apart=True)
        means = np.zeros((len(groups), len(ids)))
        for row, rows in zip(means, groups, strict=True):
            row[rows] = 1.0 / len(rows)
        out = [dict(t) for t in unfolded.linear(part, torch.as_tensor(means))]
        for name, gram in grams.items():
            found = self._coefficients(gram.double().numpy(), groups, weights, ids)
            for tree_, made in zip(out, unfolded.linear(part, torch.as_tensor(found), (name,)), strict=True):
                tree_.update(made)
        return list(out)

    def _coefficients(
        self, gram: np.ndarray, groups: Sequence[np.ndarray], weights: np.ndarray, ids: np.ndarray
    ) -> np.ndarray:
        """Return the coefficients of each group's replies, (G, n). A reply so large that its inner products are no numbers gets 0."""
        found = np.zeros((len(groups), len(gram)))
        sound = np.isfinite(gram.diagonal())
        for row, group in zip(found, groups, strict=True):
            rows = group[sound[group]]
            if len(rows) < self.rule.least:
                self.skipped += 1
                continue
            total = weights[rows].sum()
            if self.rule.weighted and not total:
                raise FailsAgain("the weights of the replies sum to 0; a rule over replies needs another sum")
            shares = weights[rows] / total if total else np.full(len(rows), 1.0 / len(rows))
            row[rows] = self.rule.weigh(Evidence(gram[np.ix_(rows, rows)], shares, ids[rows], self.round))
        return found

    def _note(self, found: np.ndarray, ids: np.ndarray) -> None:
        """Note what share of the coefficients' absolute values attackers' replies got, mean over groups."""
        if len(self._attackers):
            size, theirs = np.abs(found), np.isin(ids, self._attackers)
            shares = [float(row[theirs].sum() / row.sum()) for row in size if row.sum()]
            self._theirs += [float(np.mean(shares))] if shares else []


def _combine_chosen(part: str, found: np.ndarray, unfolded: UnfoldedParts, zero: Zero) -> list[Tree]:
    """Return what becomes of the replies with a coefficient, by group (G, n); zero where none has one."""
    chosen = [np.flatnonzero(c) for c in found]
    there = [c for c in chosen if len(c)]
    made = iter(unfolded.combine(part, zero(part), there) if there else [])
    return [next(made) if len(c) else zero(part) for c in chosen]


def _groups(by: str | None, got: Replies, unfolded: UnfoldedParts, mine: Mapping[int, Tree]) -> dict[int, np.ndarray]:
    """Return value of `by` -> numbers of the replies that have it, in order; {0: all} without `by`."""
    if by is None:
        return {0: np.arange(len(got.ids))}
    try:
        of_replies: Any = unfolded.stacked(by, ())
        value = of_replies.tolist()
    except KeyError:  # no part of the replies
        value = [int(mine[c][by]) for c in got.ids]
    return {int(v): np.flatnonzero(np.asarray(value) == v) for v in sorted(set(value))}


def _weights(weight: str, got: Replies, unfolded: UnfoldedParts, mine: Mapping[int, Tree]) -> np.ndarray:
    """Return the weights of the replies in the mean, (n,) float64, not yet divided by their sum."""
    if weight == "one":
        return np.ones(len(got.ids))
    if weight in mine.get(got.ids[0], {}):
        return np.array([float(mine[c][weight]) for c in got.ids])
    found: Any = got.examples if weight == "examples" else unfolded.stacked(weight, ())
    return found.double().numpy()


def names(method: Method) -> list[str]:
    """Return the metrics that the rows of a run have of its rule."""
    rule = aggregate.of(method.config)
    if rule is None or rule.needs == ("fold",):
        return []
    noted = "gram" in rule.needs and not rule.by_tensor and len(attack.everyone(method.config))
    return [SKIPPED, *([ATTACKERS] if noted else [])]
