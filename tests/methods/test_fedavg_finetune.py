"""Fine-tuning happens when a model is served and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed import methods, tree
from tests import toy

SHORT = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


def run(epochs: int, **changes: Any) -> toy.Result:
    return toy.simulate({"name": "fedavg_finetune", "finetune_epochs": epochs}, **{**SHORT, **changes})


@needs_fedavg
@pytest.mark.parametrize("epochs", [0, 2])
def test_training_and_wire_are_fedavgs_to_the_bit(epochs: int) -> None:
    tuned, plain = run(epochs), toy.simulate("fedavg", **SHORT)
    assert tree.same(tuned.state, plain.state)
    assert tuned.rows == plain.rows
    assert tuned.clients() == {}


@needs_fedavg
def test_zero_epochs_serve_fedavgs_model() -> None:
    (row, rows), (same, sames) = run(0).scores(), toy.simulate("fedavg", **SHORT).scores()
    # a model for each client goes through another kernel than one for all of them
    for a, b in [(row, same), *zip(rows, sames, strict=True)]:
        assert a.keys() == b.keys()
        for name, x in a.items():
            assert x == (pytest.approx(b[name], rel=1e-12) if isinstance(x, float) else b[name]), name


def test_the_global_score_is_not_tuned() -> None:
    none, some = run(0).scores()[0], run(2).scores()[0]
    assert {n for n in none if none[n] != some[n]} >= {"loss/personal", "loss/unseen"}
    assert {n: v for n, v in none.items() if n.endswith("/global")} == {
        n: v for n, v in some.items() if n.endswith("/global")
    }


def test_served_models_in_numpy(plain: Any) -> None:
    """x^r, then five full-batch steps on the client's own training data; held-out clients tune too."""
    done = run(5, **plain.WORK)
    x_r = plain.vector(done.state["model"])
    _, rows = done.scores()
    assert [r["client"] for r in rows if r["unseen"]] == [12, 13]
    for row in rows:
        p = plain.descend(x_r, *plain.data(done.fed, row["client"]), steps=5)
        x, y = plain.data(done.fed, row["client"], "test")
        assert row["loss"] == pytest.approx(plain.loss(p, x, y), abs=1e-12)
        assert row["accuracy"] == pytest.approx(plain.accuracy(p, x, y))
        assert row["loss"] != pytest.approx(plain.loss(x_r, x, y), abs=1e-3)


@pytest.mark.parametrize("schedule", [{}, {"kind": "exponential", "gamma": 0.5}])
def test_its_own_rate_is_that_of_serving_alone(plain: Any, schedule: dict[str, Any]) -> None:
    """Training goes on at the round's rate, whatever that is by then; the served model is x^r after steps of finetune_lr."""
    local = {**plain.WORK["local"], "schedule": schedule}
    method = {"name": "fedavg_finetune", "finetune_epochs": 4, "finetune_lr": 0.02}
    done, common = (
        toy.simulate(m, **{**SHORT, **plain.WORK, "local": local}) for m in (method, {"name": "fedavg_finetune"})
    )
    assert tree.same(done.state, common.state) and done.rows == common.rows
    x_r = plain.vector(done.state["model"])
    for row in done.scores()[1]:
        p = plain.descend(x_r, *plain.data(done.fed, row["client"]), steps=4, lr=0.02)
        assert row["loss"] == pytest.approx(plain.loss(p, *plain.data(done.fed, row["client"], "test")), abs=1e-12)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_the_training_rate_said_again_changes_no_bit(executor: str) -> None:
    said, unsaid = (
        toy.simulate({"name": "fedavg_finetune", **more}, executor=executor, dtype="float64").scores()
        for more in ({"finetune_lr": 0.1}, {})
    )
    assert said == unsaid


def test_serving_changes_nothing() -> None:
    """Evaluated every round or never: the same model."""
    assert tree.same(run(3, score=True).state, run(3).state)
