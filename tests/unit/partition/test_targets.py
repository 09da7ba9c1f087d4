"""Rows without a class: what they are dealt by, and what a federation knows of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayfed import partition
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.partition import Federation
from rayfed.partition.describe import describe
from rayfed.partition.targets import BINS, by_stratum
from tests.configs import good

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
LABELS = (RNG.random((60, 2)) < 0.4).astype(np.int64)
NUMBERS = RNG.normal(100, 20, 60).astype(np.float32)


def data(y: np.ndarray, names: tuple[str, ...], **columns: np.ndarray) -> Dataset:
    whole = Part(X, y, columns=columns)
    return Dataset("set", whole.take(np.arange(50)), whole.take(np.arange(50, 60)), len(names), names, "tabular")


def conf(**federation: Any) -> Any:
    return good(federation={"clients": 4, "per_round": None, **federation})


def test_labels_are_dealt_by_the_first_one() -> None:
    made, targets = by_stratum(data(LABELS, ("u", "v")))
    assert targets is not None and targets.form == "labels" and targets.names == ("u", "v")
    assert made.label_names == ("u", "v", "none") and made.classes == 3 and made.form == "classes"
    want = [0 if a else 1 if b else 2 for a, b in LABELS[:50]]
    assert made.train.y.tolist() == want and np.array_equal(made.train.columns["y"], LABELS[:50])
    assert by_stratum(data(LABELS, ("u", "v")), keep=False)[0].train.columns == {}


def test_numbers_are_dealt_by_bins_of_equal_size() -> None:
    made, targets = by_stratum(data(NUMBERS, ("n",)))
    assert targets is not None and targets.mean == pytest.approx([NUMBERS[:50].mean(dtype=float)])
    assert targets.deviation == pytest.approx([NUMBERS[:50].std(dtype=float)])
    assert np.bincount(made.train.y).tolist() == [5] * BINS and len(made.label_names) == BINS
    order = np.argsort(NUMBERS[:50])
    assert (np.diff(made.train.y[order]) >= 0).all()
    constant, targets = by_stratum(data(np.full(60, 3.0, np.float32), ("n",)))
    assert targets is not None and targets.deviation == (1.0,) and len(np.unique(constant.train.y)) == 1


@pytest.mark.parametrize(("y", "names"), [(LABELS, ("u", "v")), (NUMBERS, ("n",))], ids=["labels", "numbers"])
@pytest.mark.parametrize("kind", [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.5}, {"kind": "shards"}])
def test_a_federation_has_the_targets_themselves(y: np.ndarray, names: tuple[str, ...], kind: dict[str, Any]) -> None:
    f = partition.build(conf(partition=kind), data(y, names, weight=np.arange(60.0)))
    assert np.array_equal(f.arrays["y"], y.astype(np.float32)) and f.arrays["weight"].tolist() == list(range(60))
    assert f.outputs == names and f.answers == len(names) and f.columns == ("weight",)
    assert f.class_counts.sum(1).tolist() == f.train.sizes().tolist() and f.class_counts.shape[1] == f.classes == len(
        f.label_names
    )
    back = Federation.from_numpy(f.numpy())
    assert back.targets == f.targets and back.task == f.task == ("multilabel" if y is LABELS else "regress")
    assert back.digest() == f.digest()


def test_the_digest_of_classes_is_that_of_before_targets() -> None:
    """Of a run that was made before there were kinds, another digest would be another split."""
    f = partition.build(conf(), data(LABELS[:, 0], ("a", "b")))
    about = f.numpy()["meta"]
    assert set(about) - {"task", "public_labels"} == {
        "population",
        "classes",
        "input_shape",
        "kind",
        "label_names",
        "notes",
    }
    other = Federation.from_numpy({**f.numpy(), "meta": {**about, "task": "x.py:Own", "public_labels": True}})
    assert other.digest() == f.digest()


def test_labels_have_no_permutation() -> None:
    with pytest.raises(ConfigError, match="label_permutation found, set has labels, no classes that could be permuted"):
        partition.build(conf(groups={"kind": "label_permutation", "count": 2}), data(LABELS, ("u", "v")))


def test_a_split_of_numbers_is_described() -> None:
    c = good(task={"data": "sklearn:diabetes", "model": "linear"}, federation={"clients": 4, "per_round": None})
    (found,) = describe(c)
    assert found.numbers["classes"] == BINS and 0 < found.numbers["label_distance"] < 1
