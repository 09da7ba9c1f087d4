"""The kind `pareto`: losses by hand, preferences from keys, measures over one problem and several, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import fronts
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.launch import model_check
from rayfed.launch.federations import Federations
from tests import toy
from tests.configs import problems as wrong


def resident(data: Any = "pareto:f", **kind: Any) -> Resident:
    changes = {"task": {"data": data, "kind": {"name": "pareto", **kind}}}
    if data != "pareto:f":
        changes["federation"] = {"clients": 5, "holdout": {"kind": "none"}}
    c = toy.config("copsl", dtype="float64", **toy.merge(toy.FRONTS, changes))
    return Resident(c, toy.federation(c), None, "cpu")


def test_a_client_is_a_problem() -> None:
    f = toy.federation(resident().config)
    assert f.form == "problems" and f.task == "pareto" and f.clients == 6
    for c in range(6):
        assert len(f.train[c]) == 4 and len(f.test[c]) == 100
        assert {f.label_names[k] for k in f.arrays["y"][np.concatenate([f.train[c], f.test[c]])]} == {f.names[c]}


@pytest.mark.parametrize(
    ("loss", "want"),
    [("mtch", 0.4 / 0.2 + 0.1 * 1.0), ("tch", 0.8 * 0.6 + 0.1 * 1.0), ("ls", 0.2 * 0.4 + 0.8 * 0.6)],
)
def test_scalar_losses_by_hand(loss: str, want: float) -> None:
    t: Any = resident(loss=loss, augment=0.1).task
    f, p = (torch.tensor([x], dtype=torch.float64) for x in ([0.4, 0.6], [0.2, 0.8]))
    assert float(t._scalar(f, p)) == pytest.approx(want)


def test_the_cosines_sign() -> None:
    f, p = (torch.tensor([x], dtype=torch.float64) for x in ([0.3, 0.4], [0.6, 0.8]))  # the cosine is 1
    for gamma in (100.0, -100.0):
        t: Any = resident(loss="cosmos", gamma=gamma).task
        assert float(t._scalar(f, p)) == pytest.approx(0.5 - gamma)


def test_rows_of_a_batch_have_their_problems_loss() -> None:
    t: Any = resident().task
    x = torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=torch.float64)
    batch = {"x": x, "y": torch.tensor([4, 1]), "w": torch.ones(2)}
    raw = torch.sigmoid(t.apply(t.initial, x))
    of = [fronts.PROBLEMS[n].objectives(raw[b : b + 1, i]) for b, (i, n) in enumerate([(4, "F5"), (1, "F2")])]
    torch.testing.assert_close(t.predict(t.initial, batch), torch.cat(of))
    want = [float((f / (p + 1e-4)).max() + 0.01 * f.sum()) for f, p in zip(of, x, strict=True)]
    assert t.metrics(t.initial, batch)["loss"].tolist() == pytest.approx(want)
    of = [
        t.losses(t.initial, x[b : b + 1] + 1e-4)[0, i] for b, i in enumerate((4, 1))
    ]  # a network is asked at p itself
    torch.testing.assert_close(t.loss(t.initial, batch), torch.stack(of))


def test_preferences_are_of_the_simplex_and_of_the_key() -> None:
    t: Any = resident().task
    p = t.preferences(torch.tensor(7), (2000,))
    assert p.shape == (2000, 2) and torch.equal(p, t.preferences(torch.tensor(7), (2000,)))
    assert torch.allclose(p.sum(1), torch.tensor(1 + 2e-4, dtype=torch.float64)) and float(p.min()) >= 1e-4
    first = p[:, 0].sort().values  # two entries: each is even on (0, 1)
    assert float((first - torch.linspace(0, 1, 2000)).abs().max()) < 0.05


def test_measures_of_several_problems_are_the_mean_over_them() -> None:
    t: Any = resident().task
    points = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    y = np.array([0, 0, 3])
    found = t.summary({"prediction": points}, {"y": y})
    assert found["hypervolume"] == pytest.approx((0.21 + 1.21) / 2) and found["range"] == pytest.approx(0.5)
    assert t.summary({"prediction": points[:2]}, {"y": y[:2]})["sparsity"] == pytest.approx(2.0)


def test_objectives_over_the_nadir() -> None:
    t: Any = resident("pareto:re").task
    plain: Any = resident("pareto:re", scale="none").task
    y = torch.tensor([2])
    batch = {"x": torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64), "y": y, "w": torch.ones(1)}
    f = t.predict(t.initial, batch)
    nadir = torch.tensor(fronts.PROBLEMS["RE33"].nadir, dtype=torch.float64)
    p = batch["x"] + 1e-4
    for task, scaled in ((t, f / nadir), (plain, f)):
        want = (scaled / p).max() + 0.01 * scaled.sum()
        assert float(task.metrics(task.initial, batch)["loss"]) == pytest.approx(float(want))


def test_what_does_not_fit_is_refused() -> None:
    assert "task.data: 'pareto:g' is unknown" in wrong("task.data=pareto:g")[0]
    assert "task.data.preferences: 1 found" in wrong("task.data={name: pareto:f, preferences: 1}")[0]
    assert "task.model.together: 1 found, allowed: true, false" in wrong("task.model={name: coaction, together: 1}")
    with pytest.raises(
        ConfigError, match=r"task\.model\.outputs: 6 found, a problem has 10 numbers; allowed: at least that"
    ):
        Federations().of(
            toy.config(
                "copsl",
                **toy.merge(
                    toy.FRONTS, {"task": {"data": "pareto:zdt"}, "federation": {"clients": 4, "per_round": None}}
                ),
            )
        )
    with pytest.raises(ConfigError, match="copsl needs fronts"):
        Federations().of(toy.config("copsl", local={"epochs": None, "steps": 1}))


def test_an_own_network_is_tried_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
from torch import nn
def build(classes, input_shape, outputs=6):
    return nn.Sequential(nn.Linear(input_shape[0], classes * outputs), nn.Unflatten(1, (classes, outputs)))
""",
        encoding="utf-8",
    )
    for outputs, says in (6, ""), (5, "needed: (4, 6, 6), (rows, problems, numbers of a solution)"):
        model = {"model": {"name": f"{tmp_path}/own.py:build", "outputs": outputs}}
        changes = {k: v for k, v in toy.FRONTS.items() if k != "task"}
        c = toy.config(
            "fedavg", **changes, task={**{k: v for k, v in toy.FRONTS["task"].items() if k != "model"}, **model}
        )
        asked = model_check.question(c, toy.federation(c))
        assert asked is not None
        found = model_check.check_models({"run": asked})["run"]
        assert (says in found[0]) if says else not found
