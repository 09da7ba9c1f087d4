"""pFedMe: rounds in NumPy, lam = 0 leaves the global model, theta is what a client is served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy

SETTINGS = {"name": "pfedme", "lam": 2.0, "inner_steps": 3, "inner_lr": 0.2, "beta": 1.5}


def test_two_rounds_in_numpy(plain: Any) -> None:
    done = toy.simulate(SETTINGS, **plain.WORK)
    x = plain.vector(done.initial["model"])
    kept: dict[str, Any] = {}
    for draw in done.fed.drawn:
        ends = []
        for i in draw.ids:
            data, w, theta = plain.data(done.fed, i), x, x
            for _ in range(plain.STEPS):
                for _ in range(3):
                    theta = theta - 0.2 * (plain.gradient(theta, *data) + 2.0 * (theta - w))
                w = w - plain.LR * 2.0 * (w - theta)
            ends.append(w)
            kept[str(i)] = theta
        x = x + 1.5 * (np.mean(ends, 0) - x)
    np.testing.assert_allclose(plain.vector(done.state["model"]), x, atol=1e-12)
    assert done.clients().keys() == kept.keys()
    for i, state in done.clients().items():
        np.testing.assert_allclose(plain.vector(state["theta"]), kept[i], atol=1e-12)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_the_pull_the_global_model_stays(executor: str) -> None:
    """And theta is plain descent on the client's own batches."""
    done = toy.simulate({**SETTINGS, "lam": 0.0}, rounds=2, executor=executor)
    assert tree.same(done.state, done.initial)
    assert all(float(tree.norm(tree.sub(s["theta"], done.initial["model"]))) > 0.01 for s in done.clients().values())


def test_who_was_never_asked_is_served_the_global_model(plain: Any) -> None:
    done = toy.simulate(SETTINGS, rounds=1, **plain.WORK)
    _, rows = done.scores()
    x, asked = plain.vector(done.state["model"]), done.fed.drawn[0].ids
    assert len(asked) == 7
    for row in (r for r in rows if r["client"] not in asked and r["client"] < 12):
        test = plain.data(done.fed, row["client"], "test")
        assert row["loss"] == pytest.approx(plain.loss(x, *test), abs=1e-9)


@pytest.mark.parametrize(
    ("local", "lam"), [({"optimizer": {"momentum": 0.5}}, 1.0), ({}, 21.0), ({"optimizer": {"lr": 0.01}}, 23.0)]
)
def test_steps_that_are_not_the_papers_are_refused(local: dict[str, Any], lam: float) -> None:
    with pytest.raises(ConfigError, match=r"pfedme's step|allowed: a product of at most 2"):
        toy.config({"name": "pfedme", "lam": lam}, local=local)
