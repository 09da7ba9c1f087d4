"""What the debugging executor keeps of the piece that failed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed import visits as v
from rayfed.execute import debug
from rayfed.execute.debug import PieceFailed
from rayfed.visits import ClientContext, Phase, Visit
from tests.unit.execute.cohorts import (
    BATCH,
    cohort,
    data,
    gather,
    sizes,
)


def breaking(where: str) -> Visit:
    visit = gather((v.epochs(2),))
    step = visit.phases[0].step

    def begin(client: ClientContext) -> Any:
        if where == "begin" and int(client.info.client) == 4:
            raise ArithmeticError("boom")
        return visit.begin(client)

    def second(carry: Any, batch: Any, key: Any) -> Any:
        if where == "step" and float(carry["t"]) == 2:
            raise ArithmeticError("boom")
        return step(carry, batch, key)

    def end(client: ClientContext, carry: Any) -> Any:
        if where == "end":
            raise ArithmeticError("boom")
        return visit.end(client, carry)

    def enter(client: ClientContext, carry: Any) -> Any:
        if where == "enter":
            raise ArithmeticError("boom")
        return carry

    return Visit(begin, [Phase(v.once(), step), Phase(v.epochs(2), second, enter)], end)


def caught(where: str) -> PieceFailed:
    visit = breaking(where)
    shared = {"s": torch.arange(3.0)}
    with pytest.raises(PieceFailed) as caught:
        list(debug.execute(visit, cohort(visit), shared, {"m": torch.arange(6.0)}, {}, data()))
    assert isinstance(caught.value.__cause__, ArithmeticError)
    return caught.value


def test_debug_keeps_what_the_failing_piece_was_given() -> None:
    begin = caught("begin")
    assert (begin.position, begin.stage) == (4, "begin")
    assert begin.arguments["info"]["client"] == 4 and begin.arguments["shared"]["s"].tolist() == [0, 1, 2]
    assert begin.arguments["mine"]["m"] == 4
    step = caught("step")
    assert (step.position, step.stage) == (0, "step 1 of phase 1")
    batch, carry = step.arguments["batch"], step.arguments["carry"]
    visit = breaking("step")
    rows = cohort(visit).phases[1].rows[0, 1, 0].numpy()
    assert isinstance(batch["x"], np.ndarray) and np.array_equal(batch["x"], data()["x"].numpy()[rows])
    assert carry["t"] == 2
    end = caught("end")
    assert end.stage == "end" and end.arguments["info"]["steps"] == 1 + 2 * math.ceil(int(sizes()[0]) / BATCH)
    for k in (begin, step, end):
        assert all(isinstance(x, np.ndarray) for x in tree.values(k.arguments))


def test_debug_names_enter() -> None:
    assert "enter" in caught("enter").stage


def test_debug_keeps_a_tuple_of_batches_as_a_tree() -> None:
    def step(carry: Any, batch: Any, key: Any) -> Any:
        raise ArithmeticError("boom")

    visit = Visit(lambda *a: {}, [Phase(v.steps(1, batches=2), step)], lambda *a: ({}, {}))
    with pytest.raises(PieceFailed) as caught:
        list(debug.execute(visit, cohort(visit), {}, {}, {}, data()))
    assert set(caught.value.arguments["batch"]) == {"0", "1"}
    assert caught.value.arguments["batch"]["1"]["w"].shape == (BATCH,)
