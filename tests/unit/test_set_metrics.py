"""Metrics of sets, by hand and against scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from rayfed import set_metrics
from rayfed.errors import ConfigError, FailsAgain
from rayfed.metrics import lower_is_better

Y = np.array([0, 0, 1, 1, 2, 2])
P = np.array([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
LABELS = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])
Q = np.array([[0.9, 0.2], [0.6, 0.1], [0.4, 0.3], [0.2, 0.8]])


def value(name: str, form: str, p: np.ndarray, **batch: np.ndarray) -> float | None:
    k = p.shape[1] if p.ndim == 2 else 1
    metric = set_metrics.make(name, form, [str(i) for i in range(k)])
    (found,) = set_metrics.computed([metric], {"prediction": p}, batch).values()
    return found


def test_of_classes() -> None:
    one_vs_rest = [sk.roc_auc_score(c == Y, P[:, c]) for c in range(3)]
    assert value("auroc", "classes", P, y=Y) == pytest.approx(np.mean(one_vs_rest))
    assert value("auroc", "classes", P, y=Y) == pytest.approx(sk.roc_auc_score(Y, P, multi_class="ovr"))
    assert value("balanced_accuracy", "classes", P, y=Y) == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert value("f1", "classes", P, y=Y) == pytest.approx((0.5 + 0.8 + 2 / 3) / 3)
    assert value("brier", "classes", P[:1], y=Y[:1]) == pytest.approx(0.2**2 + 0.1**2 + 0.1**2)
    two = np.stack([1 - P[:, 1], P[:, 1]], 1)
    assert value("auroc", "classes", two, y=(Y == 1) * 1) == pytest.approx(sk.roc_auc_score(Y == 1, P[:, 1]))


def test_calibration_by_hand() -> None:
    """Two rows sure at 0.9, one of them right, and two at 0.6, both right: (|0.5 - 0.9| 2 + |1 - 0.6| 2) / 4."""
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert value("ece", "classes", p, y=np.array([0, 1, 0, 1])) == pytest.approx((0.4 * 2 + 0.4 * 2) / 4)
    assert value("ece", "classes", np.array([[1.0, 0.0]]), y=np.array([0])) == 0


def test_a_class_that_is_missing_is_left_out_and_one_class_alone_has_no_auroc() -> None:
    some = Y < 2
    assert value("auroc", "classes", P[some], y=Y[some]) == pytest.approx(
        np.mean([sk.roc_auc_score(Y[some] == c, P[some][:, c]) for c in (0, 1)])
    )
    assert value("auroc", "classes", P[:2], y=Y[:2]) is None
    assert value("r2", "numbers", np.array([1.0]), y=np.array([2.0])) is None


def test_of_labels_with_and_without_a_mask() -> None:
    assert value("auroc", "labels", Q, y=LABELS) == pytest.approx(sk.roc_auc_score(LABELS, Q, average="macro"))
    assert value("ap", "labels", Q, y=LABELS) == pytest.approx(sk.average_precision_score(LABELS, Q, average="macro"))
    assert value("f1", "labels", Q, y=LABELS) == pytest.approx(sk.f1_score(LABELS, Q >= 0.5, average="macro"))
    mask = np.array([[1, 1], [0, 1], [1, 1], [1, 0]])
    known = [mask[:, k] > 0 for k in range(2)]
    want = np.mean([sk.roc_auc_score(LABELS[m, k], Q[m, k]) for k, m in enumerate(known)])
    assert (
        value("auroc", "labels", Q, y=LABELS, mask=mask) == pytest.approx(want) != value("auroc", "labels", Q, y=LABELS)
    )
    hidden = np.where(mask > 0, LABELS, 1 - LABELS)  # what is not known is not read
    assert value("auroc", "labels", Q, y=hidden, mask=mask) == pytest.approx(want)


def test_of_numbers() -> None:
    y, p = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    assert value("rmse", "numbers", p, y=y) == pytest.approx(np.sqrt(5 / 3))
    assert value("r2", "numbers", p, y=y) == pytest.approx(1 - 5 / ((y - y.mean()) ** 2).sum())
    assert lower_is_better("rmse/global") and lower_is_better("ece/personal") and not lower_is_better("r2/global")


def test_families_have_a_number_of_each_class_and_pair() -> None:
    names = ["a b", "b", "c"]
    of = [set_metrics.make(n, "classes", names) for n in ("per_class", "confusion")]
    found = set_metrics.computed(of, {"prediction": P}, {"y": Y})
    assert {n: found[n] for n in ("recall-a_b", "recall-b", "recall-c")} == {
        "recall-a_b": 0.5,
        "recall-b": 1,
        "recall-c": 0.5,
    }
    assert found["confusion-a_b-b"] == 0.5 and found["confusion-c-a_b"] == 0.5 and found["confusion-b-c"] == 0
    assert sum(n.startswith("confusion-") for n in found) == 6
    assert set_metrics.computed(of, {"prediction": P[:2]}, {"y": Y[:2]})["recall-c"] is None
    labels = set_metrics.computed(
        [set_metrics.make("per_class", "labels", ["u", "v"])], {"prediction": Q}, {"y": LABELS}
    )
    assert labels == {"recall-u": 0.5, "recall-v": 0.5}


@pytest.mark.parametrize(
    ("name", "form", "says"),
    [
        ("rmse", "classes", "'rmse' found, which this task cannot give; allowed: auroc, ap, f1"),
        ("aurok", "labels", "'aurok' found (did you mean 'auroc'?), which this task cannot give"),
        ("auroc", "numbers", "allowed: rmse, r2, path/to/file.py:function"),
        ("confusion", "labels", "which this task cannot give"),
        ("f1", "", "which this task cannot give; allowed: path/to/file.py:function"),
    ],
)
def test_a_metric_that_a_task_cannot_give_is_refused_by_name(name: str, form: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_metrics.make(name, form, ["a", "b"])
    assert says in str(caught.value)


@pytest.fixture
def own(tmp_path: Path) -> Any:
    def write(text: str, name: str = "mine") -> str:
        (tmp_path / "own.py").write_text(text)
        return f"{tmp_path / 'own.py'}:{name}"

    return write


def test_an_own_function(own: Any) -> None:
    name = own(
        "def worst_gap(rows, batch):\n    '''Largest error.'''\n"
        "    return abs(rows['prediction'] - batch['y']).max()\n\n\nworst_gap.better, worst_gap.unit = 'lower', 'm'\n",
        "worst_gap",
    )
    metric = set_metrics.make(name, "numbers", ["t"])
    assert metric.measures == (("worst_gap", "lower", "m", "Largest error", "set"),)
    assert set_metrics.computed([metric], {"prediction": np.array([1.0, 5.0])}, {"y": np.array([2.0, 2.0])}) == {
        "worst_gap": 3
    }
    assert lower_is_better("worst_gap/global")


def test_own_functions_that_cannot_be_used_say_why(own: Any) -> None:
    with pytest.raises(ConfigError, match=r"\.better: 'up' found, allowed: higher, lower"):
        set_metrics.make(own("def mine(rows, batch):\n    return 1\n\n\nmine.better = 'up'\n"), "numbers", [])
    with pytest.raises(ConfigError, match=r"has no function 'other'"):
        set_metrics.make(own("def mine(rows, batch):\n    return 1\n", "other"), "numbers", [])
    raising = set_metrics.make(own("def mine(rows, batch):\n    raise SystemExit(3)\n"), "numbers", [])
    with pytest.raises(FailsAgain, match=r"own.py:mine raised SystemExit: 3 \(.*own.py, line 2\)"):
        set_metrics.computed([raising], {}, {})


def test_base_to_new_by_hand() -> None:
    """Class 2 is new: a row of it is scored among new classes alone, and the rows of 0 and 1 among these two."""
    metric = set_metrics.make("base_to_new", "classes", ["a", "b", "c"], new=[2])
    p = np.array([[0.3, 0.2, 0.5], [0.4, 0.1, 0.5], [0.8, 0.1, 0.1]])
    found = set_metrics.computed([metric], {"prediction": p}, {"y": np.array([0, 1, 2])})
    assert found == {"base_accuracy": 0.5, "new_accuracy": 1.0, "harmonic_mean": pytest.approx(2 / 3)}
    alone = set_metrics.computed([metric], {"prediction": p[:2]}, {"y": np.array([0, 1])})
    assert alone == {"base_accuracy": 0.5, "new_accuracy": None, "harmonic_mean": None}
    with pytest.raises(ConfigError, match=r"base_to_new found, federation.new_classes: 0 found"):
        set_metrics.make("base_to_new", "classes", ["a", "b"])
