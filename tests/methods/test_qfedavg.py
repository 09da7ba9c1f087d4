"""q-FedAvg: two parabolas worked by hand, q = 0 is uniform FedAvg, two rounds in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed.errors import ConfigError
from tests import toy


@pytest.mark.parametrize(
    ("q", "path"),
    [
        (0.0, {1: 0.328039, 2: 0.439431, 3: 0.477256, 50: 0.496705}),
        (1.0, {1: 0.079765, 2: 0.148972, 3: 0.208478, 100: 0.511977}),
    ],
)
def test_the_two_parabolas(quadratics: Any, q: float, path: dict[int, float]) -> None:
    changes = quadratics()
    for rounds, want in path.items():
        done = toy.simulate({"name": "qfedavg", "q": q}, rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("q", [0.0, 0.5, 3.0])
def test_two_rounds_in_numpy(plain: Any, q: float) -> None:
    """The loss is the one before training, over all of a client's rows."""
    work = toy.merge(plain.WORK, {"local": {"schedule": {"kind": "exponential", "gamma": 0.5}}})
    done = toy.simulate({"name": "qfedavg", "q": q}, **work)
    x = plain.vector(done.initial["model"])
    for r, draw in enumerate(done.fed.drawn):
        lr, top, bottom = 0.1 * 0.5**r, 0.0, 0.0
        for i in draw.ids:
            data = plain.data(done.fed, i)
            w, loss = (x - plain.descend(x, *data, lr=lr)) / lr, plain.loss(x, *data) + 1e-10
            top = top + loss**q * w
            bottom += q * loss ** (q - 1) * float(w @ w) + loss**q / lr
        x = x - top / bottom
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-10)
    if not q:
        x = plain.vector(done.initial["model"])
        for r, draw in enumerate(done.fed.drawn):
            x = np.mean([plain.descend(x, *plain.data(done.fed, i), lr=0.1 * 0.5**r) for i in draw.ids], 0)
        np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transforms": [{"kind": "clip", "norm": 1.0}]}, "transforms: clip found"),
        ({"attacks": [{"kind": "scale", "clients": 1}]}, "attacks: scale found"),
    ],
)
def test_its_quotient_is_of_the_updates_that_were_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}, but clients of qfedavg also send a norm"):
        toy.config("qfedavg", **changes)
