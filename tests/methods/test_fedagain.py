"""FedAgain: without sharpness FedAvg to the bit; trust by hand; what corrupted clients get."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import methods, tree
from rayfed.methods.fedagain import median, over_median
from tests import toy


def trust(errors: list[float], updates: list[list[float]], **settings: Any) -> list[float]:
    method: Any = methods.of(toy.config({"name": "fedagain", **settings}))
    found: list[float] = method._trust(torch.tensor(errors).double(), {"w": torch.tensor(updates)}).tolist()
    return found


def test_without_sharpness_it_is_fedavg() -> None:
    a, b = (toy.simulate(m, executor="vmap") for m in ({"name": "fedagain", "a": 0.0, "b": 0.0}, "fedavg"))
    assert tree.same(a.state["model"], b.state["model"])
    seen = {c for draw in a.fed.drawn for c in draw.ids}
    assert a.state["trust"].tolist() == [1.0 if c in seen else -1.0 for c in range(12)]


def test_trust_by_hand() -> None:
    """Errors 1, 1, 2 at equal distances: (1, 1, e^-2), weights .4683, .4683, .0634."""
    square = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    found = trust([1, 1, 2], square, b=0.0)
    assert found == pytest.approx([1, 1, math.exp(-2)])
    assert [round(t / sum(found), 4) for t in found] == [0.4683, 0.4683, 0.0634]
    # distances to the median (0, 0) are 1, 1, 4: a forger with the smallest error of all
    assert trust([1, 1, 0.1], [[1, 0], [-1, 0], [0, 4]], b=1.0, center="received")[2] == pytest.approx(math.exp(-3))
    # the median of 1, -1, 0, 8 is 1/2: distances .5, 1.5, .5, 7.5 over their median 1
    assert trust([1] * 4, [[1], [-1], [0], [8]], b=1.0) == pytest.approx([1, math.exp(-0.5), 1, math.exp(-6.5)])
    assert trust([1, 1, math.inf], square)[2] == 0
    assert trust([1, math.nan, math.nan], square) == [
        1,
        0,
        0,
    ]  # two of three are no numbers, and the third is as it was
    assert trust([3, 3, 6], square) == pytest.approx(trust([1, 1, 2], square))  # units do not count
    far = [[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [0.5, 0.5]]
    nearer, farther = (trust([1] * 4, [*far[:2], [0.0, y], far[3]])[2] for y in (3.0, 5.0))
    assert farther < nearer < 1
    received = {"trust": "reciprocal"}
    assert trust([1, 1, 2], square, **received) == pytest.approx([1 / 1.0001, 1 / 1.0001, 1 / 2.0001])


def test_medians() -> None:
    assert median(torch.tensor([5.0, 1.0, 3.0])) == 3 and median(torch.tensor([5.0, 1.0, 3.0, 4.0])) == 3.5
    assert over_median(torch.tensor([0.0, 0.0, 2.0])).tolist() == [1, 1, math.inf]


def test_a_round_by_hand() -> None:
    """The server's sum in NumPy from the clients' own updates and losses, and what is remembered of them."""
    done = toy.simulate({"name": "fedagain", "memory": 0.5}, executor="vmap", dtype="float64", rounds=2)
    one = toy.simulate({"name": "fedagain", "memory": 0.5}, executor="vmap", dtype="float64", rounds=1)
    ids = one.fed.drawn[0].ids
    plain = toy.simulate("fedavg", executor="vmap", dtype="float64", rounds=1)
    assert not tree.same(one.state["model"], plain.state["model"])
    first, second = one.state["trust"].numpy(), done.state["trust"].numpy()
    assert (
        (first >= 0) == np.isin(np.arange(12), ids)
    ).all() and first.max() == 1  # somebody is at the median or below
    twice = sorted(set(ids) & set(done.fed.drawn[1].ids))
    assert twice and all(second[c] >= 0.5 * first[c] for c in twice)  # half of it is from before
    later = toy.simulate({"name": "fedagain", "memory": 0.0}, executor="vmap", dtype="float64", rounds=2)
    assert not np.allclose(later.state["trust"].numpy()[twice], second[twice])


def test_who_has_no_validation_rows_counts_as_the_median() -> None:
    method: Any = methods.of(toy.config("fedagain", federation={"split": {"val": 0.3}}))

    class Got(SimpleNamespace):
        def stacked(self, part: str) -> torch.Tensor:
            return torch.tensor([0.0, 3.0, 5.0, 4.0])

    sizes = SimpleNamespace(sizes=lambda: np.array([0, 3, 3, 3]))
    fed: Any = SimpleNamespace(federation=SimpleNamespace(val=sizes))
    task: Any = None
    assert method._errors(Got(ids=[0, 1, 2, 3]), {}, {}, fed, task).tolist() == [4, 3, 5, 4]


def test_who_is_far_counts_little() -> None:
    attacks = [{"kind": "scale", "clients": [1], "factor": 20.0}]
    more: dict[str, Any] = {"federation": {"per_round": None}, "attacks": attacks}
    done = toy.simulate({"name": "fedagain", "memory": 0.0}, executor="vmap", rounds=1, **more)
    assert done.rows[0]["trust/honest"] > 0.99 and done.state["trust"][1] == done.state["trust"].min()


def test_errors_at_the_server() -> None:
    public = {"federation": {"public": {"rows": 30, "labels": True}}}
    done = toy.simulate({"name": "fedagain", "signal": "benchmark"}, executor="vmap", rounds=1, **public)
    sent = toy.simulate("fedavg", executor="vmap", rounds=1, **public)
    assert done.rows[0]["bytes/up"] == sent.rows[0]["bytes/up"]  # nothing beside the update
    method = done.fed.method
    assert "needs rows at the server" in method.fits(toy.federation(toy.config()))[0]
