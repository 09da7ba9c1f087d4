"""HA-Fedformer: both merges by hand, modalities that never mix, and what it reduces to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from rayfed.methods import ha_fedformer as haf
from tests import toy

ONE_EACH: Any = {
    **toy.MODAL,
    "task": {
        "data": {**toy.MODAL["task"]["data"], "features": 0},
        "model": {"name": "crossformer", "dim": 4},
    },
    "federation": {
        **toy.MODAL["federation"],
        "modalities": {"absent": 0.0, "owners": {"image": 1, "text": 1}},
    },
    "local": {"epochs": None, "steps": 2},
}
SHORT = {"name": "ha_fedformer", "samples": 2, "block": 2}


def test_the_precision_weighted_mean_by_hand() -> None:
    """Samples 1, 3 and 5, 5.5: (2 * 1 + 5.25 * 16) / 17; the plain mean of means is 3.625, of last iterates 4.25."""
    means, weights = [], []
    for samples in ([1.0, 3.0], [5.0, 5.5]):
        mean = spread = {"w": torch.zeros((), dtype=torch.float64)}
        for i, x in enumerate(samples):
            mean, spread = haf.welford(mean, spread, {"w": torch.tensor(x).double()}, torch.tensor(i + 1.0))
        means.append(mean["w"])
        weights.append(haf.precision(spread["w"] / 2, rho=0.0, eps=0.0))
    assert [float(w) for w in weights] == pytest.approx([1, 16]) and [float(m) for m in means] == [2, 5.25]
    merged = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert float(merged) == pytest.approx(5.0588, abs=1e-4)


def test_shrunk_variances_by_hand() -> None:
    var = torch.tensor([0.0, 2.0])
    assert haf.precision(var, 1.0, 1.0).tolist() == [0.5, 0.5]
    assert haf.precision(var, 0.5, 0.5).tolist() == [1.0, 0.5]


def test_mixtures_by_hand() -> None:
    """Two decoders that moved alike and one that moved against them, at a low temperature."""
    old = {m: {"w": torch.zeros(1)} for m in "abc"}
    new = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([3.0])}, "c": {"w": torch.tensor([-2.0])}}
    none = haf.mixtures(new, old, 0.0, 0.1)
    assert all(torch.equal(none[m]["w"], new[m]["w"]) for m in new)
    half = haf.mixtures(new, old, 0.5, 1e-3)
    assert [float(half[m]["w"]) for m in "abc"] == pytest.approx([0.5 + 0.5 * 2, 1.5 + 0.5 * 2, -2])


def test_the_codes_attention_by_hand() -> None:
    """Of 0 and 2: each takes a step of half the gap times its softmax, which the farther one dominates."""
    a = torch.softmax(torch.tensor([0.0, 2.0]), 0)[1]
    got = haf.attentive([{"w": torch.zeros(1)}, {"w": torch.full((1,), 2.0)}], 0.5, 0.0, 3)
    assert float(got["w"]) == pytest.approx(float((0 + 0.5 * a * 2 + 2 - 0.5 * a * 2) / 2))
    matrices = [{"w": torch.zeros(2, 2)}, {"w": torch.diag(torch.tensor([2.0, 1.0]))}]
    assert torch.equal(haf.attentive(matrices, 0.0, 0.0, 3)["w"], torch.diag(torch.tensor([1.0, 0.5])))


def test_one_sample_has_no_variance_and_is_the_mean_of_the_owners() -> None:
    """All precisions are 1 / eps, so eps and rho do not count; client by client it is the mean of what late fusion's clients send, were
    they begun here and given one more step."""
    asked: Any = {"dtype": "float64", "executor": "vmap", "rounds": 1, "until": 1}
    steps: Any = toy.merge(ONE_EACH, {"local": {"epochs": None, "steps": 1, "batch_size": 64}})
    one = {"name": "ha_fedformer", "samples": 1, "block": 1, "mix": 0.0}
    a, b = (toy.simulate({**one, **more}, **asked, **steps) for more in ({"eps": 1.0}, {"eps": 1e-3, "rho": 1.0}))
    code = toy.simulate({"name": "ha_fedformer", "merge": "code"}, **asked, **toy.merge(steps, {"local": {"steps": 2}}))
    for n, p in a.state["model"].items():
        torch.testing.assert_close(p, b.state["model"][n], rtol=0, atol=1e-12)
        if not n.startswith("decoders."):
            torch.testing.assert_close(p, code.state["model"][n], rtol=0, atol=1e-12)


def test_without_mixing_a_modality_does_not_see_clients_of_others() -> None:
    """The clients of one modality train on other rows, in another order of magnitude: all else of the model stays to the bit."""
    asked = {"executor": "vmap", "rounds": 1, "until": 1}
    done = toy.simulate({**SHORT, "mix": 0.0}, **asked, **ONE_EACH)
    c = toy.config("ha_fedformer", **ONE_EACH)
    f = toy.federation(c)
    x = f.arrays["x"]
    x.flags.writeable = True
    try:
        image = x[:, -2] > 0
        x[image, :9] *= 3
        other = toy.simulate({**SHORT, "mix": 0.0}, **asked, **ONE_EACH)
        x[image, :9] /= 3
    finally:
        x.flags.writeable = False
    a, b = done.state["model"], other.state["model"]
    same = {n for n in a if torch.equal(a[n], b[n])}
    others = {n for n in a if n.split(".")[1] == "text"}
    assert others <= same and not {n for n in a if n.startswith("encoders.image.blocks")} & same


def test_fusion_by_losses_needs_validation_rows_and_orders_modalities() -> None:
    with pytest.raises(ConfigError, match=r"method\.fuse: loss found"):
        toy.config({"name": "ha_fedformer", "fuse": "loss"}, **ONE_EACH)
    val: Any = toy.merge(ONE_EACH, {"federation": {"split": {"val": 0.3}, "per_round": 5}})
    done = toy.simulate({**SHORT, "fuse": "loss"}, executor="vmap", rounds=1, until=1, **val)
    weight = done.state["model"][haf.FUSION]
    assert bool((weight < 0).all()) and len(weight.unique()) == 2


def test_both_merges_run_and_are_unlike() -> None:
    asked = {"executor": "vmap", "rounds": 1, "until": 1}
    code = toy.simulate({"name": "ha_fedformer", "merge": "code"}, **asked, **ONE_EACH)
    m = code.state["model"]
    assert torch.equal(m["decoders.image.query"], m["decoders.text.query"])
    assert not tree.same(code.state, toy.simulate(SHORT, **asked, **ONE_EACH).state)
