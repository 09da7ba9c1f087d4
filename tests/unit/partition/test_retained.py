"""Another task's rows stand at the end of the arrays, and every model is scored on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import partition
from rayfed.errors import ConfigError
from rayfed.launch import metric_names
from rayfed.partition import Federation
from tests import toy

OTHER = {"name": "synthetic:blobs", "examples": 16, "classes": 4, "features": 8, "test": 24}


def asked(**changes: Any) -> dict[str, Any]:
    return {"evaluate": {"retained": {**OTHER, **changes}}}


def test_rows_stand_at_the_end_and_change_nothing_else() -> None:
    plain, with_ = (partition.build(toy.config(**more)) for more in ({}, asked()))
    n = len(plain.arrays["y"])
    assert with_.retained.tolist() == list(range(n, n + 24)) and not len(plain.retained)
    for name, a in plain.arrays.items():
        np.testing.assert_array_equal(with_.arrays[name][:n], a)
    for name in ("pooled_test", "group", "class_counts"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(with_, name))
    assert plain.digest() != with_.digest() == Federation.from_numpy(with_.numpy()).digest()
    splits = [partition.split_key(toy.config(**more).to_dict()) for more in ({}, asked(), asked(test=25))]
    assert len(set(splits)) == 3


@pytest.mark.parametrize("method", ["fedavg", "local_only"])
def test_every_model_is_scored_on_them(method: str) -> None:
    """Of one model the mean over the rows; of clients' own models the mean over the clients."""
    done = toy.simulate(method, rounds=1, **asked())
    row, _ = done.scores()
    fed, task = done.fed.federation, done.fed.task
    x, y = (torch.as_tensor(fed.arrays[n][fed.retained]) for n in "xy")

    def accuracy(model: Any) -> float:
        return float((task.apply(model, x).argmax(-1) == y).double().mean())

    if method == "fedavg":
        want = accuracy(done.state["model"])
    else:
        kept = done.clients()
        served = [kept[str(c)]["model"] if str(c) in kept else task.initial for c in range(fed.population)]
        have = [c for c in range(fed.population) if len(fed.test[c])]
        want = float(np.mean([accuracy(served[c]) for c in have]))
    assert row["accuracy/retained"] == pytest.approx(want, abs=1e-6) and "accuracy/retained_ex" not in row
    names = metric_names.known(done.fed.method, fed)
    assert {n for n in row if n.endswith("retained")} == {n for n in names if "retained" in n}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": 3}, "with the classes"),
        ({"features": 9}, "whose rows have shape (9,), those of task.data (8,)"),
        ({"test": 0}, "which has no test rows"),
        ({"name": "synthetic:images", "features": None}, "allowed: as task.data"),
    ],
)
def test_data_that_one_model_cannot_be_scored_on_is_refused(changes: dict[str, Any], said: str) -> None:
    spec = {k: v for k, v in {**OTHER, **changes}.items() if v is not None}
    with pytest.raises(ConfigError) as refused:
        partition.build(toy.config(evaluate={"retained": spec}))
    assert said in refused.value.problems[0] and refused.value.problems[0].startswith("evaluate.retained: ")


def test_what_it_is_called_is_judged_before_the_start() -> None:
    with pytest.raises(ConfigError) as refused:
        toy.config(evaluate={"retained": {"name": "synthetic:blobs", "feature": 3}})
    assert refused.value.problems[0].startswith("evaluate.retained.feature: unknown option")
