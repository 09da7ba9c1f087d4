"""Bytes of a round, counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.engine.byte_meter import ByteMeter
from rayfed.fold import mean, total
from rayfed.wire import ANY, Part, Wire
from tests import toy
from tests.unit.engine.asks import SHORT

P = 8 * 16 + 16 + 16 * 4 + 4


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("cohort", [1, 4])
def test_bytes_of_fedavg_by_hand(executor: str, cohort: int) -> None:
    """Seven clients a round: P floats down, P floats and the number of examples up."""
    for dtype, size in (("float32", 4), ("float64", 8)):
        done = toy.simulate(executor=executor, dtype=dtype, local=SHORT["local"], resources={"cohort": cohort})
        for row in done.rows:
            assert row["bytes/down"] == 7 * P * size
            assert row["bytes/up"] == 7 * (P * size + 8)
            assert row["visits"] == 7


def test_a_shared_part_is_paid_once_a_round_by_each_client() -> None:
    fed = toy.make_fed(toy.config())
    model = {"model": fed.task.initial}

    def down(to: Sequence[int], shared: tree.Tree) -> int:
        before = fed.meter["bytes/down"]
        fed.ask(fed.method.train, to, shared=shared, fold=mean("delta"))
        return (fed.meter["bytes/down"] - before) // (4 * P)

    fed.begin(1)
    assert down((1, 2, 3), model) == 3
    assert down((2, 3, 4), model) == 1  # only 4 has not got it yet
    assert down((1, 2), {"model": tree.scale(fed.task.initial, 1.0)}) == 2  # another model
    fed.begin(2)
    assert down((1, 2), model) == 2


def test_bytes_of_several_parts(odd: str) -> None:
    """Down: the model and one scalar each; up: the update, one scalar, and the number of examples."""
    done = toy.simulate(odd, rounds=1, resources={"cohort": 3})
    assert done.rows[0]["bytes/down"] == 7 * (4 * P + 4)
    assert done.rows[0]["bytes/up"] == 7 * (4 * P + 4 + 8)
    fed = done.fed
    fed.begin(2)
    fed.ask(fed.method.idle, (1, 2))
    assert fed.meter["bytes/up"] == fed.meter["bytes/down"] == 0 and fed.meter["visits"] == 2
    fed.ask(fed.method.rows, (1, 2, 3))
    assert fed.meter["bytes/up"] == 3 * (3 * 4 + 4)  # what is not folded is sent without weights
    fed.begin(3)
    fed.ask(fed.method.rows, (1, 2, 3), fold=total("k"))
    assert fed.meter["bytes/up"] == 3 * (3 * 4 + 4)


def test_presence_alone_costs_nothing() -> None:
    for row in toy.simulate("local_only").rows:
        assert row["bytes/up"] == row["bytes/down"] == 0


def test_scoring_costs_nothing() -> None:
    a, b = toy.simulate(rounds=1), toy.simulate(rounds=1, score=True)
    assert {n: a.rows[0][n] for n in ("bytes/up", "bytes/down")} == {
        n: b.rows[0][n] for n in ("bytes/up", "bytes/down")
    }
    fed = b.fed
    fed.begin(2)
    b.scores()
    assert fed.meter["bytes/up"] == fed.meter["bytes/down"] == fed.meter["visits"] == 0


class Priced:
    """A method of which a part costs one byte for each of its rows."""

    wire = Wire(down={"model": Part(ANY), "experts": Part(ANY, routed=True)})

    def cost(self, part: str, sent: tree.Tree) -> int:
        return len(tree.values(sent)[0])


def test_a_client_that_has_a_part_does_not_pay_for_it_again() -> None:
    meter: Any = ByteMeter(Priced(), None)  # type: ignore[arg-type]
    one, other = torch.ones(3), torch.ones(3)
    assert meter.newcomers(one, (4, 2)) == [2, 4] and meter.newcomers(one, (2, 3)) == [3]
    assert meter.newcomers(other, (2,)) == [2]
    meter.count_down({"model": one}, {"model": [2, 4, 3]}, [])
    assert meter.down == 3
    meter.reset()
    assert meter.row() == {"bytes/up": 0, "bytes/down": 0, "ray/bytes/up": 0, "ray/bytes/down": 0}
    assert meter.newcomers(one, (2,)) == [2]


def test_of_a_routed_stack_one_row_is_paid() -> None:
    """K models of which a deployment sends one: the stack's cost over K, for each client."""
    meter: Any = ByteMeter(Priced(), None)  # type: ignore[arg-type]
    meter.method.cost = lambda part, sent: tree.nbytes(sent)
    stacked = {"w": torch.ones(5, 3)}
    meter.count_down({"experts": stacked}, {"experts": [1, 2]}, [])
    assert meter.down == 2 * 3 * 4


def test_what_differs_in_rank_costs_by_the_rank_at_the_time() -> None:
    asked: list[list[int] | None] = []
    meter: Any = ByteMeter(Priced(), {1: 4, 2: 8, 3: 8}.__getitem__)  # type: ignore[arg-type]
    meter.note_ranks(SimpleNamespace(ranks_before={3: 2}))
    asked.append(meter._ranks((1, 2, 3)))
    meter.reset()
    asked.append(meter._ranks((1, 2, 3)))
    assert asked == [[4, 8, 2], [4, 8, 8]]
