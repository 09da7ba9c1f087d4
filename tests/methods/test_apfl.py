"""APFL: at both ends of the mixture it is FedAvg and local training; in between, the formula on two parabolas."""

from __future__ import annotations

import pytest
import torch

from rayfed import methods, tree
from tests import toy

needs = pytest.mark.skipif(not {"fedavg", "local_only"} <= set(methods.names()), reason="compared with them")


@needs
def test_alpha_0_serves_fedavgs_model() -> None:
    done, plain = (
        toy.simulate(m, executor="vmap", dtype="float64") for m in ({"name": "apfl", "alpha": 0.0}, "fedavg")
    )
    assert tree.same(done.state, plain.state)
    for name, value in plain.scores()[0].items():
        if "local" not in name:
            assert done.scores()[0][name] == pytest.approx(value, rel=1e-12), name


@needs
def test_alpha_1_is_local_training_to_the_bit() -> None:
    done, alone = (toy.simulate(m, executor="vmap", rounds=3) for m in ({"name": "apfl", "alpha": 1.0}, "local_only"))
    assert done.clients().keys() == alone.clients().keys()
    assert all(tree.same(s["v"], alone.clients()[c]["model"]) for c, s in done.clients().items())


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_two_parabolas(quadratics, rate: float) -> None:
    """w, v and a of both clients by the three lines of the formula; f_1 = 5 (x - 1)^2, f_2 = (x + 1)^2 / 2."""
    done = toy.simulate({"name": "apfl", "alpha": 0.25, "alpha_lr": rate}, rounds=3, **quadratics())
    x, v, a = 0.0, [0.0, 0.0], [0.25, 0.25]
    for _ in range(3):
        ends = []
        for i, (curve, at) in enumerate(((10.0, 1.0), (1.0, -1.0))):
            w = x
            for _ in range(20):
                g = curve * (a[i] * v[i] + (1 - a[i]) * w - at)
                slope = (v[i] - w) * g
                w, v[i] = w - 0.02 * curve * (w - at), v[i] - 0.02 * a[i] * g
                a[i] = min(1.0, max(0.0, a[i] - rate * slope))
            ends.append(w)
        x = sum(ends) / 2
    assert float(done.state["model"]["head.weight"]) == pytest.approx(x, abs=1e-12)
    for i in (0, 1):
        own = done.clients()[str(i)]
        assert [float(own["v"]["head.weight"]), float(own["alpha"])] == pytest.approx([v[i], a[i]], abs=1e-12)
    assert (a != [0.25, 0.25]) == bool(rate)


def test_statistics_of_the_mixture_are_the_local_models_own() -> None:
    from rayfed.methods.apfl import mixed

    v, w = ({"x": torch.tensor([k]), "running": torch.tensor([k])} for k in (1.0, 3.0))
    assert mixed(v, w, torch.tensor(0.25), ("running",)) == {"x": torch.tensor([2.5]), "running": torch.tensor([1.0])}
