"""FedDyn against two parabolas worked by hand and NumPy; h is the mean of all clients' sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from tests import toy

EVERYONE = {
    "federation": {"clients": 1, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}},
    "local": {"batch_size": 512},
}


def test_the_two_parabolas(quadratics: Any) -> None:
    """It reaches the true minimiser 9/11, where FedAvg stalls at 0.4967."""
    changes = quadratics()
    for rounds, want in ((1, 0.623775), (2, 0.818618), (3, 0.806051), (80, 0.818182)):
        done = toy.simulate({"name": "feddyn", "alpha": 1.0}, rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


def test_two_rounds_in_numpy(plain: Any) -> None:
    """Partial participation; a step's gradient is that of F_i plus alpha (y - x^r) - g_i with the paper's dual g_i."""
    alpha = 0.3
    done = toy.simulate({"name": "feddyn", "alpha": alpha}, rounds=3, **plain.WORK)
    x, h = plain.vector(done.initial["model"]), 0.0
    dual: dict[int, Any] = dict.fromkeys(range(12), 0.0)
    for draw in done.fed.drawn:
        ys = []
        for i in draw.ids:
            y, data = x, plain.data(done.fed, i)
            for _ in range(plain.STEPS):
                y = y - plain.LR * (plain.gradient(y, *data) - dual[i] + alpha * (y - x))
            dual[i] = dual[i] - alpha * (y - x)
            ys.append(y)
        h = h - alpha / 12 * np.sum([y - x for y in ys], 0)
        x = np.mean(ys, 0) - h / alpha
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_h_is_the_mean_over_all_clients(executor: str) -> None:
    done = toy.simulate("feddyn", rounds=3, executor=executor, dtype="float64")
    total = tree.zeros(done.state["h"])
    for state in done.clients().values():
        total = tree.add(total, state["h_i"])
    assert float(tree.norm(tree.sub(tree.scale(total, 1 / 12), done.state["h"]))) < 1e-14 < float(tree.norm(total))


def test_one_client_alone_goes_twice_as_far_at_first(plain: Any) -> None:
    """x^1 = 2 y - x^0."""
    done = toy.simulate({"name": "feddyn", "alpha": 0.5}, rounds=1, **toy.merge(plain.WORK, EVERYONE))
    x, data = plain.vector(done.initial["model"]), plain.data(done.fed, 0)
    y = x
    for _ in range(plain.STEPS):
        y = y - plain.LR * (plain.gradient(y, *data) + 0.5 * (y - x))
    np.testing.assert_allclose(plain.vector(done.state["model"]), 2 * y - x, atol=1e-12)
