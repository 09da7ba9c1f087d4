"""The pool in this process, and folds merged by the calls' numbers."""

from __future__ import annotations

import pytest
import torch

from rayfed import fold
from rayfed.engine.messages import CallResult, Job, VisitCall
from rayfed.engine.pool import LocalPool, Merging, Outcome
from tests import toy


def test_jobs_are_done_one_after_the_other_where_they_are_asked_for() -> None:
    pool = LocalPool()
    fed = toy.make_fed(toy.config(), pool)
    calls = [VisitCall("train", (c,), 1, 1, 1, ("model",), folds=(fold.mean("delta"),)) for c in (3, 1)]
    model = pool.put(fed.task.initial)
    outcomes = list(pool.execute([Job("toy", call, (model,)) for call in calls]))
    assert [(i, out.result.clients) for i, out in outcomes] == [(0, [3]), (1, [1])]  # type: ignore[union-attr]
    assert pool.get(model) is fed.task.initial and pool.restarts == 0


def result(folded: fold.Folded) -> Outcome:
    return Outcome(CallResult([], {}, [], [], [], folded, {}, (), False, {}, 0, {}, 0.0))


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 2, 0, 3, 1)])
def test_folds_merge_along_the_calls_numbers_in_any_order_of_arrival(order: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    totals = [torch.randn(5, generator=draw) for _ in order]
    merging = Merging()
    for i in order:
        partial = {"": {"total": {"w": totals[i]}, "weight": float(i)}}
        merging.add(i, result(fold.to_numpy({"delta": partial})))
    assert merging.lost() == [] and merging.moved == 0
    merged = merging.result()["delta"][""]
    a, b, c, d, e = totals
    assert merged["weight"] == 10.0 and torch.equal(merged["total"]["w"], ((a + b) + (c + d)) + e)


def test_of_no_call_nothing_is_merged() -> None:
    assert Merging().result() == {}
