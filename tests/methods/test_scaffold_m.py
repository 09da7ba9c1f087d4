"""SCAFFOLD-M: two parabolas worked by hand, SCAFFOLD at beta 1, and what the control variates sum to."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed import methods, tree
from tests import toy


def test_the_two_parabolas(quadratics: Any) -> None:
    changes = quadratics()
    for rounds, want in ((1, 0.146571), (2, 0.399394), (3, 0.690837), (200, 0.818182)):
        done = toy.simulate({"name": "scaffold_m", "beta": 0.1}, rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


@pytest.mark.skipif("scaffold" not in methods.names(), reason="compared with scaffold, which is not there")
def test_all_of_the_fresh_gradient_is_scaffold() -> None:
    equal = {"local": {"steps": 4, "epochs": None}}  # with unequal K_i SCAFFOLD averages the updates as they are
    a, b = (
        toy.simulate(m, rounds=3, dtype="float64", **equal) for m in ({"name": "scaffold_m", "beta": 1.0}, "scaffold")
    )
    for part in ("model", "c"):
        assert float(tree.norm(tree.sub(a.state[part], b.state[part]))) < 1e-7 * float(tree.norm(b.state[part]))


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_server_control_is_the_mean_of_all_clients(executor: str) -> None:
    done = toy.simulate("scaffold_m", rounds=3, executor=executor, dtype="float64")
    total = tree.zeros(done.state["c"])
    for state in done.clients().values():
        total = tree.add(total, state["c_i"])
    gap = tree.norm(tree.sub(tree.scale(total, 1 / 12), done.state["c"]))
    assert float(gap) < 1e-12 < float(tree.norm(total))


def test_controls_are_mean_gradients(plain: Any) -> None:
    """By hand: c_i after a visit is the mean of the gradients that its steps saw."""
    beta = 0.25
    done = toy.simulate({"name": "scaffold_m", "beta": beta}, rounds=2, **plain.WORK)
    before = toy.simulate({"name": "scaffold_m", "beta": beta}, rounds=2, until=1, **plain.WORK)
    x, c, g = (plain.vector(before.state[n]) for n in ("model", "c", "g"))
    own = {i: plain.vector(s["c_i"]) for i, s in before.clients().items()}
    for i in done.fed.drawn[1].ids:
        y, data, seen = x, plain.data(done.fed, i), []
        for _ in range(plain.STEPS):
            seen.append(plain.gradient(y, *data))
            y = y - plain.LR * (beta * (seen[-1] - own.get(str(i), 0.0) + c) + (1 - beta) * g)
        got = plain.vector(done.clients()[str(i)]["c_i"])
        assert abs(got - sum(seen) / plain.STEPS).max() < 1e-6
