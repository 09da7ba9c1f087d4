"""FedGELA: the simplex, its scaling, and rounds by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from tests import toy

EVERYONE = {"clients": 3, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}}


def test_the_fixed_layer_is_a_simplex_that_never_moves_or_travels() -> None:
    done = toy.simulate({"name": "fedgela", "temperature": 0.5}, rounds=2, executor="vmap", dtype="float64")
    m = 0.5 * done.state["model"]["head.weight"]
    torch.testing.assert_close(m @ m.T, (4 / 3) * (torch.eye(4, dtype=m.dtype) - 0.25), rtol=0, atol=1e-12)
    assert not done.state["model"]["head.bias"].any()
    assert torch.equal(done.state["model"]["head.weight"], done.initial["model"]["head.weight"])
    body = sum(p.nbytes for n, p in done.state["model"].items() if n.startswith("body."))
    assert [r["bytes/down"] for r in done.rows] == [body * len(d.ids) for d in done.fed.drawn]


def test_a_balanced_client_is_not_scaled(split) -> None:
    rng = np.random.default_rng(0)
    split([rng.normal(size=(12, 8)) for _ in range(3)], [np.arange(12) % 4] * 3, classes=4)
    scaled, plain = (
        toy.simulate({"name": "fedgela", "scaled": s}, rounds=2, federation=EVERYONE, executor="vmap")
        for s in (True, False)
    )
    assert tree.same(scaled.state, plain.state)


def test_rounds_and_served_models_by_hand(hand) -> None:
    done = toy.simulate({"name": "fedgela", "temperature": 0.4}, rounds=3, **hand.WORK)
    model = {n: p.clone() for n, p in done.initial["model"].items()}
    m = model["head.weight"].clone()
    body = [n for n in model if n not in hand.HEAD]

    def adapted(c):
        counts = torch.as_tensor(done.fed.federation.class_counts[c]).double()
        return {"head.weight": m * (4 * counts / counts.sum())[:, None], "head.bias": torch.zeros(4, dtype=m.dtype)}

    for draw in done.fed.drawn:
        updates, n = [], []
        for c in draw.ids:
            x, y = hand.data(done.fed, c)
            after = hand.descend({**model, **adapted(c)}, lambda p: hand.loss(p, x, y), moves=body)  # noqa: B023
            updates.append({k: after[k] - model[k] for k in body})
            n.append(len(y))
        model |= {k: model[k] + u for k, u in hand.mean(updates, n).items()}
    hand.same(done.state["model"], model)
    for row in done.scores()[1]:
        x, y = hand.data(done.fed, row["client"], "test")
        own = {**model, **adapted(row["client"])}
        assert row["loss"] == pytest.approx(float(hand.loss(own, x, y)), abs=1e-12)
        absent = np.flatnonzero(done.fed.federation.class_counts[row["client"]] == 0)
        assert not hand.logits(own, x)[:, absent].any(), "the logit of an absent class is 0"


def test_fewer_features_than_classes_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"3 features before its last layer, method.name: fedgela needs .* classes, 4"
    ):
        toy.simulate("fedgela", rounds=1, task={"model": {"hidden": [3]}})
