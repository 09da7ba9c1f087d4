"""GIFD: its pieces by hand, what the search may and may not see, and that noise is a defence against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.methods import gifd
from tests import toy
from tests.configs import the_problem

SHORT = {"name": "gifd", "steps": 30, "generator_steps": 100, "latent": 4, "restarts": 2}
ONE = {"federation": {"probe": 60}}


def test_projections_by_hand() -> None:
    """(3, -1) onto the ball of radius 2: both shrink by 1; inside nothing changes; radius 0 gives zeros."""
    d = torch.tensor([[3.0, -1.0], [0.5, -0.5]], dtype=torch.float64)
    assert gifd.onto_l1(d, 2.0).tolist() == [[2.0, 0.0], [0.5, -0.5]]
    assert not gifd.onto_l1(d, 0.0).any()
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gifd.onto_l1(x, 3.0)
    assert float(found.abs().sum(1).max()) <= 3.0 + 1e-9 and bool((found * x >= 0).all())
    assert gifd.sphere(x).norm(dim=1).tolist() == pytest.approx([20**0.5] * 50)
    assert float(gifd.variation(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))) == (2.0 + 1.0) / 2


def test_at_the_true_picture_the_gradients_match() -> None:
    done = toy.simulate(SHORT, rounds=1, dtype="float64", **ONE)
    task, model = done.fed.task, done.state["model"]
    got = done.fed.ask(done.fed.method.leak, range(5), shared={"model": model})
    g, x, y = (got.stacked(n) for n in ("gradient", "truth", "label"))
    flat = torch.cat([v.flatten(1) for v in tree.values(g)], 1)
    for i in range(5):
        assert abs(float(gifd.mismatch(task, model, x[i], y[i], flat[i]))) < 1e-9
        assert abs(float(gifd.mismatch(task, model, x[i], y[i], 7 * flat[i]))) < 1e-9
        assert 0 < float(gifd.mismatch(task, model, x[i] + 1, y[i], flat[i])) <= 2
    # features are behind a ReLU, so a row's sums are negative for its label alone
    assert torch.equal(gifd.infer(task, g), y)


def test_a_gradient_in_numpy(plain: Any) -> None:
    """Softmax regression on a client's one picture."""
    more = {**ONE, "task": {"model": "linear"}}
    done = toy.simulate({**SHORT, "search": "pixels"}, rounds=1, dtype="float64", **more)
    got = done.fed.ask(done.fed.method.leak, [0], shared={"model": done.state["model"]})
    x, y = got.gather("truth")[0].numpy()[None], np.array([int(got.gather("label")[0])])
    wanted = plain.gradient(plain.vector(done.state["model"]), x, y)
    np.testing.assert_allclose(plain.vector(got.gather("gradient")[0]), wanted, atol=1e-12)
    rows, _ = plain.data(done.fed, 0)
    assert (np.abs(rows - x).max(1) < 1e-6).any(), "one of the client's own rows"


def test_a_radius_of_zero_is_the_latent_search_and_more_stages_match_no_worse() -> None:
    done = {
        how: toy.simulate({**SHORT, **more}, rounds=1, dtype="float64", **ONE)
        for how, more in {"latent": {"search": "latent"}, "zero": {"radius": 0.0}, "gifd": {"radius": 0.3}}.items()
    }
    rows = {how: d.rows[0] for how, d in done.items()}
    assert rows["zero"]["gifd/match"] == pytest.approx(rows["latent"]["gifd/match"], abs=1e-9)
    assert rows["zero"]["gifd/psnr"] == pytest.approx(rows["latent"]["gifd/psnr"], abs=1e-6)
    assert rows["gifd"]["gifd/match"] < rows["latent"]["gifd/match"]
    for d in done.values():
        assert tree.same(d.state["model"], d.initial["model"])


def test_local_noise_keeps_pictures_from_being_found() -> None:
    noise = [
        {"kind": "clip", "norm": 1.0},
        {"kind": "gaussian", "noise_multiplier": 5.0, "where": "local", "accountant": "none"},
    ]
    plain, noised = (
        toy.simulate({**SHORT, "search": "pixels", "steps": 100}, rounds=1, transforms=t, **ONE).rows[0]
        for t in ([], noise)
    )
    assert plain["gifd/psnr"] > noised["gifd/psnr"] and plain["gifd/match"] < noised["gifd/match"]


def test_what_it_needs_is_said() -> None:
    assert the_problem(method="gifd").startswith("federation.probe: 0 found, gifd trains")
