"""FedCM: two parabolas worked by hand, FedAvg at beta 1, and the server's step along its own direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy


def test_the_two_parabolas(quadratics: Any) -> None:
    changes = quadratics()
    for rounds, want in ((1, 0.146571), (2, 0.385435), (3, 0.655176), (200, 0.788780)):
        done = toy.simulate({"name": "fedcm", "beta": 0.1}, rounds=rounds, **changes)
        assert float(done.state["model"]["head.weight"]) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("beta", "fixed"), [(1.0, 0.4967), (0.5, 0.6566), (0.05, 0.8038)])
def test_less_of_the_fresh_gradient_is_less_biased(quadratics: Any, beta: float, fixed: float) -> None:
    """The fixed points; the true minimiser is at 0.8182."""
    done = toy.simulate({"name": "fedcm", "beta": beta}, rounds=200 if beta < 0.1 else 50, **quadratics())
    assert float(done.state["model"]["head.weight"]) == pytest.approx(fixed, abs=1e-4)


def test_all_of_the_fresh_gradient_is_uniform_fedavg(plain: Any) -> None:
    done = toy.simulate({"name": "fedcm", "beta": 1.0}, rounds=3, **plain.WORK)
    x = plain.vector(done.initial["model"])
    for draw in done.fed.drawn:
        x = np.mean([plain.descend(x, *plain.data(done.fed, i)) for i in draw.ids], 0)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)


def test_the_server_goes_along_its_direction() -> None:
    """x^r - x^{r+1} = gamma g^{r+1}, here with gamma = 0.5 K lr: K = 4 steps of 0.1, and a falling rate's own sum."""
    local = {"steps": 4, "epochs": None, "schedule": {"kind": "exponential", "gamma": 0.5}}
    runs = [
        toy.simulate({"name": "fedcm", "server_lr": 0.5}, rounds=3, until=r, dtype="float64", local=local)
        for r in (2, 3)
    ]
    before, after = (r.state for r in runs)
    want = tree.scale(after["g"], 0.5 * 4 * 0.1 * 0.5**2)
    assert float(tree.norm(tree.sub(tree.sub(before["model"], after["model"]), want))) < 1e-8 * float(tree.norm(want))


def test_unequal_steps_are_divided_by_their_own(plain: Any) -> None:
    """By hand, one round: clients with more batches take more steps and count the same."""
    work = toy.merge(plain.WORK, {"local": {"batch_size": 4, "epochs": 1}})
    done = toy.simulate({"name": "fedcm", "beta": 1.0}, rounds=1, **work)
    done.fed.begin(1)
    got = done.fed.ask(done.fed.method.train, done.fed.drawn[0].ids, shared=done.initial, keep=("delta", "steps"))
    each = {i: plain.vector(d) for i, d in got.gather("delta").items()}
    rates = {i: float(s) for i, s in got.gather("steps").items()}
    assert len(set(rates.values())) > 2 and rates == {r.client: pytest.approx(0.1 * r.steps) for r in got}
    want = plain.vector(done.initial["model"]) + np.mean(list(rates.values())) * np.mean(list(each.values()), 0)
    np.testing.assert_allclose(plain.vector(done.state["model"]), want, atol=1e-7)


@pytest.mark.parametrize("method", ["fedcm", "scaffold_m"])
@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"name": "adam"}])
def test_only_plain_sgd(method: str, optimizer: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{method} has its momentum in the direction"):
        toy.config(method, local={"optimizer": optimizer})
