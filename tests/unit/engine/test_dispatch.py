"""Asking: keys of every ask, cohorts in any order of asking, and parts that fold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayfed import fold, tree
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.pool import LocalPool, Merging
from rayfed.errors import RunFailed
from rayfed.fold import mean
from tests import toy


def test_a_part_folds_once_in_an_ask(odd: str) -> None:
    fed = toy.make_fed(toy.config(odd), LocalPool())
    twice = (mean("delta", weight="one"), mean("delta", weight="examples"))
    with pytest.raises(ValueError, match="train: a part is folded twice in one ask: delta, delta"):
        fed.ask(fed.method.train, fed.sample(), shared={"model": fed.task.initial}, fold=twice)


def test_a_client_is_asked_once_per_ask() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    with pytest.raises(ValueError, match="train: a client is asked twice in one ask"):
        fed.ask(fed.method.train, (1, 2, 1), shared={"model": fed.task.initial}, fold=mean("delta"))


def test_every_ask_has_its_own_keys() -> None:
    """A client asked twice in a round, or in another round, sees its examples in another order."""
    fed = toy.make_fed(toy.config())

    def learn() -> tree.Tree:
        return fed.ask(fed.method.train, (1,), shared={"model": fed.task.initial}, fold=mean("delta")).folded["delta"]

    fed.begin(1)
    a, b = learn(), learn()
    fed.begin(2)
    c = learn()
    fed.begin(1)
    assert tree.same(learn(), a) and tree.same(learn(), b)
    assert not tree.same(a, b) and not tree.same(a, c) and not tree.same(b, c)


def test_an_evaluation_costs_nothing_and_has_its_own_keys() -> None:
    fed = toy.make_fed(toy.config())
    fed.begin(1)
    shared = {"model": fed.task.initial}
    replies = fed.dispatch.ask(Evaluation.PERSONAL, (3, 1), shared=shared, mine={})
    assert replies.ids == [1, 3] and replies.stacked("n").shape == (2,)
    assert all(fed.meter[n] == 0 for n in ("bytes/up", "bytes/down", "visits"))
    learnt = fed.ask(fed.method.train, (1,), shared=shared, fold=mean("delta")).folded["delta"]
    fed.begin(1)
    assert not tree.same(fed.ask(fed.method.train, (1,), shared=shared, fold=mean("delta")).folded["delta"], learnt)


def test_a_fold_of_nobody_is_zero_and_one_without_a_zero_is_named_where_it_is_read(odd: str) -> None:
    fed = toy.make_fed(toy.config(odd))
    fed.begin(1)
    got = fed.ask(fed.method.train, (), shared={"model": fed.task.initial}, fold=(mean("delta"), mean("row", "one")))
    assert tree.same(got.folded["delta"], tree.zeros(fed.task.params_like)) and got.weight == {"delta": 0.0, "row": 0.0}
    with pytest.raises(RunFailed, match="nobody replied and part 'row', declared 'any', has no zero"):
        got.folded["row"]
    with pytest.raises(KeyError):
        got.folded["k"]


def test_what_is_lost_of_the_folds_is_executed_again() -> None:
    """A node dies with the folds of the first call; nothing is counted twice."""

    class Once(Merging):
        lost_once = False

        def lost(self) -> list[int]:
            if Once.lost_once:
                return []
            Once.lost_once = True
            self.merger = fold.Merger(fold.merge_parts)
            return list(range(4))

    class Forgetful(LocalPool):
        executed = 0

        def merging(self) -> Merging:
            return Once()

        def execute(self, jobs: Any) -> Any:
            Forgetful.executed += len(jobs)
            return super().execute(jobs)

    def ask(pool: LocalPool) -> Any:
        fed = toy.make_fed(toy.config(), pool)
        fed.begin(1)
        shared = {"model": fed.task.initial}
        return fed.ask(fed.method.train, range(7), shared=shared, fold=mean("delta")), fed.meter

    (whole, counted), (again, counted_again) = ask(LocalPool()), ask(Forgetful())
    assert Forgetful.executed == 8 and tree.same(again.folded["delta"], whole.folded["delta"])
    assert again.ids == whole.ids and counted_again == counted


def test_a_watcher_is_called_for_every_call_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noting(LocalPool):
        def execute(self, jobs: Any) -> Any:
            for i, out in super().execute(jobs):
                yield i, out._replace(result=replace(out.result, notes=(f"note {i}",)))

    fed = toy.make_fed(toy.config(), Noting())
    visits: list[int] = []
    notes: list[str] = []
    fed.dispatch.watch, fed.dispatch.note = visits.append, notes.append
    fed.begin(1)
    fed.ask(fed.method.train, range(5), shared={"model": fed.task.initial}, fold=mean("delta"))
    assert visits == [2, 4, 5] and notes == ["note 0", "note 1", "note 2"]
