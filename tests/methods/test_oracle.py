"""Oracle clusters: one planted group is FedAvg to the bit, several are FedAvg inside each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import tree
from tests import toy


def test_one_group_is_fedavg() -> None:
    one = {"federation": {"groups": {"kind": "label_permutation", "count": 1}}, "executor": "vmap"}
    ours, plain = toy.simulate("oracle", **one), toy.simulate("fedavg", **one)
    assert tree.same(ours.state["experts"]["0"], plain.state["model"]) and list(ours.state["experts"]) == ["0"]


@pytest.mark.parametrize("weight", ["examples", "one"])
def test_two_rounds_in_numpy(plain: Any, weight: str) -> None:
    done = toy.simulate({"name": "oracle", "weight": weight}, **plain.WORK)
    group = done.fed.federation.group
    models = {g: plain.vector(done.initial["experts"]["0"]) for g in sorted(set(group[:12].tolist()))}
    for draw in done.fed.drawn:
        for g in models:
            data = [plain.data(done.fed, c) for c in draw.ids if group[c] == g]
            n = np.array([len(y) if weight == "examples" else 1 for _, y in data], float)
            if len(data):
                models[g] = models[g] + (n / n.sum()) @ np.stack(
                    [plain.descend(models[g], x, y) - models[g] for x, y in data]
                )
    assert len(models) == 3 and done.state["assignment"].tolist() == group[:12].tolist()
    for g, p in models.items():
        np.testing.assert_allclose(plain.vector(done.state["experts"][str(g)]), p, atol=1e-13)
