"""Data, kind of task, metrics and method that do not fit one another are refused by names before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from tests.configs import good

NONE = {"federation": {"clients": 4, "per_round": None}}
DIGITS = {"data": "digits", "model": "linear"}
DIABETES = {"data": "sklearn:diabetes", "model": "linear"}


def refused(**keys: Any) -> list[str]:
    config = good(**{**NONE, **keys})
    with pytest.raises(ConfigError) as caught:
        Federations().of(config)
    return caught.value.problems


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({**DIGITS, "kind": "regress"}, "task.kind: regress found, task.data holds one class for each row; allowed: auto, classify"),
        ({**DIABETES, "kind": "classify"}, "classify found, task.data holds numbers for each row, y of floats; allowed: auto, oracle"),
        ({**DIABETES, "kind": "multilabel"}, "allowed: auto, oracle, regress"),
        ({**DIABETES, "kind": "instruct"}, "task.kind: instruct found, task.data holds numbers"),
    ],
)  # fmt: skip
def test_a_kind_that_cannot_learn_from_the_data(task: Any, says: str) -> None:
    assert any(says in p for p in refused(task=task))


def test_metrics_that_the_task_cannot_give() -> None:
    found = refused(task=DIABETES, evaluate={"metrics": ["auroc", "rmse", "f1"]})
    assert len(found) == 2 and all("which this task cannot give; allowed: rmse, r2" in p for p in found)


def test_smoothed_targets_need_classes() -> None:
    (said,) = refused(task=DIABETES, local={"label_smoothing": 0.1})
    assert said.startswith("local.label_smoothing: 0.1 found, but nothing reads it with task.kind: regress")
    assert Federations().of(good(**NONE, task=DIGITS, local={"label_smoothing": 0.1}))


OWN = """
import numpy as np

from rayfed import Measure, Method, TaskKind
from rayfed.data import Dataset, Part


class Weighted(TaskKind):
    \"\"\"Weighs rows.\"\"\"

    columns = ("weight",)
    measures = (Measure("loss", "lower", "-", "loss"), Measure("mean", "higher", "-", "mean", "set"))


class Needy(Method):
    needs = frozenset({"classes", "columns:weight", "public", "klasses"})


def mean(rows, batch):
    return 0.0


def data(seed, column="wait"):
    x = np.random.default_rng(seed).normal(size=(40, 3))
    part = Part(x, np.arange(40) % 2, columns={column: np.ones(40)})
    return Dataset("own", part, part, 2, ("a", "b"), "tabular")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_task.py").write_text(OWN)
    return str(tmp_path / "own_task.py")


def test_a_column_that_is_missing(own: str) -> None:
    task = {"data": f"{own}:data", "model": "linear", "kind": f"{own}:Weighted"}
    (found,) = refused(task=task)
    assert found.endswith(
        "Weighted reads column 'weight', which task.data does not have (did you mean 'wait'?); it has: wait"
    )
    close = refused(task={**task, "data": {"name": f"{own}:data", "column": "weights"}})
    assert "(did you mean 'weights'?)" in close[0]


def test_what_a_method_needs_and_the_task_does_not_offer(own: str) -> None:
    found = refused(task=DIABETES, method=f"{own}:Needy")
    text = "\n".join(found)
    assert (
        "needs classes (logits of classes (B, C), and one label for each example); the task offers: features, numbers; of task.kind"
        in text
    )
    assert "needs columns:weight; the task offers: features, numbers" in text
    assert "needs public (a public set (federation.public)); the task offers" in text
    assert "needs 'klasses', which no task offers (did you mean 'classes'?)" in text and len(found) == 4
    data = {"name": f"{own}:data", "column": "weight"}
    fits = refused(
        task={"data": data, "model": "linear"}, method=f"{own}:Needy", federation={**NONE["federation"], "probe": 5}
    )
    assert len(fits) == 1 and "klasses" in fits[0]


def test_a_name_that_is_measured_already(own: str) -> None:
    task = {"data": {"name": f"{own}:data", "column": "weight"}, "model": "linear", "kind": f"{own}:Weighted"}
    (found,) = refused(task=task, evaluate={"metrics": [f"{own}:mean"]})
    assert found == "evaluate.metrics: 'mean' is measured already; allowed: another name"


def test_a_metric_that_stops_must_be_one_that_the_task_has() -> None:
    (found,) = refused(task=DIABETES, stop={"metric": "accuracy/global", "at": 0.5})
    assert (
        "stop.metric: 'accuracy/global' found, which no round of this run measures" in found and "rmse/global" in found
    )
