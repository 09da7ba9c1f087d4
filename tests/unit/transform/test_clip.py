"""Clipping: to a norm, and to a quantile of the norms."""

from __future__ import annotations

import math

import pytest
import torch

from rayfed.transform import Collected
from tests import toy
from tests.unit.transform.alone import made, there_and_back


def test_a_long_vector_is_scaled_and_a_short_one_is_not() -> None:
    t = made("clip", norm=2.5)
    for v, wanted in (([3.0, 4.0], [1.5, 2.0]), ([0.6, 0.8], [0.6, 0.8]), ([0.0, 0.0], [0.0, 0.0])):
        _, back, _ = there_and_back(t, torch.tensor(v, dtype=torch.float64))
        assert torch.allclose(back, torch.tensor(wanted, dtype=torch.float64), atol=0, rtol=1e-15)


@pytest.mark.parametrize(("private", "m"), [(False, 4), (True, 10)])
def test_the_norm_follows_the_quantile_by_the_papers_step(private: bool, m: int) -> None:
    """Algorithm 1 of 1905.03871, by hand: 3 of 4 below, without noise on the count."""
    t = made("clip", norm=2.0, quantile=0.5, rate=0.2, count_noise=0.0)
    got = Collected({}, {}, {"below": 3.0}, 10.0, 4, 2.0, private, 0.0)
    _, state = t.finish(got, t.server_init(), key=1)
    assert float(state["norm"]) == pytest.approx(2.0 * math.exp(-0.2 * (0.5 + 1.0 / m - 0.5)))


def test_nobody_moves_no_norm() -> None:
    t = made("clip", norm=2.0, quantile=0.9)
    got = Collected({}, {}, {"below": 0.0}, 10.0, 0, 2.0, False, 0.0)
    assert t.finish(got, t.server_init(), key=1)[1] == t.server_init()


def test_the_norm_finds_the_quantile() -> None:
    """Norms of the toy's updates are between 0.1 and 3: from far below and far above C comes to where half of them are below."""
    found = []
    for start in (0.01, 50.0):
        clip = {"kind": "clip", "norm": start, "quantile": 0.5, "rate": 0.7}
        done = toy.simulate(rounds=25, transforms=[clip], local={"optimizer": {"lr": 0.01}})
        found.append(float(done.fed.dispatch.engine.get("transforms")["clip"]["norm"]))
    assert found[0] == pytest.approx(found[1], rel=0.5) and 0.01 < found[0] < 5
