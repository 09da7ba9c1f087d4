"""FoolsGold against its published steps in loops, and in a run with memory."""

from __future__ import annotations

import numpy as np
import pytest

from rayfed import aggregate
from tests import toy
from tests.methods.conftest import Plain
from tests.unit.aggregate.updates import PLANE, make, weigh

SYBILS = np.array([[1.0, 0.0, 0.2], [0.1, 1.0, 0.0], [0.0, 0.3, -1.0], [-1.0, -1.0, 0.1], [-1.0, -1.01, 0.1]])


def published(h: np.ndarray, kappa: float = 1.0) -> np.ndarray:
    """`foolsgold` of the authors' code, step by step; what it gives each client."""
    n = len(h)
    cs = np.array([[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in h] for a in h]) - np.eye(n)
    v = cs.max(1)
    for i in range(n):
        for j in range(n):
            if i != j and v[i] < v[j]:
                cs[i, j] = cs[i, j] * v[i] / v[j]
    wv = np.clip(1 - cs.max(1), 0, 1)
    wv = wv / wv.max()
    wv[wv > 0.99] = 0.99
    with np.errstate(divide="ignore"):
        wv = kappa * (np.log(wv / (1 - wv)) + 0.5)
    return np.clip(wv, 0, 1)


@pytest.mark.parametrize("updates", [SYBILS, PLANE])
def test_the_published_steps(updates: np.ndarray) -> None:
    wanted = published(updates)
    assert np.allclose(weigh(make("foolsgold"), updates), wanted / wanted.sum(), rtol=0, atol=1e-9)


def test_two_of_one_aim_get_nothing_and_the_others_everything() -> None:
    c = weigh(make("foolsgold"), SYBILS)
    assert c[3:].sum() < 0.01 and c[:3].min() > 0.3


def test_clients_that_are_all_alike_count_equally() -> None:
    assert weigh(make("foolsgold"), np.ones((4, 2))).tolist() == [0.25] * 4


def test_rounds_in_numpy() -> None:
    """Sums of updates are kept over the rounds, also for clients that a round does not ask."""
    plain = Plain
    done = toy.simulate("fedavg", rounds=3, aggregate={"kind": "foolsgold"}, **plain.WORK)
    p, sums = plain.vector(done.initial["model"]), {}
    for draw in done.fed.drawn:
        moved = {c: plain.descend(p, *plain.data(done.fed, c)) - p for c in draw.ids}
        for c, u in moved.items():
            sums[c] = sums.get(c, 0.0) + u
        a = published(np.stack([sums[c] for c in draw.ids]))
        p = p + a @ np.stack([moved[c] for c in draw.ids]) / a.sum()
    np.testing.assert_allclose(plain.vector(done.state["model"]), p, atol=1e-10)


def test_it_says_that_it_remembers() -> None:
    assert [k for k in aggregate.KINDS.names() if aggregate.KINDS.get(k).memory] == ["foolsgold"]
