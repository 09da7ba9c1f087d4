"""Rows of several modalities: packed, masked by client and by row, refused by name; every network takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayfed import partition
from rayfed.config.schema import Named
from rayfed.data import Dataset, load, modalities, own
from rayfed.data.modalities import Modality, part, presence
from rayfed.errors import ConfigError
from rayfed.partition import Federation
from tests import toy

OF = (
    Modality("picture", "image", (1, 2, 2)),
    Modality("note", "text", (3,), 5),
    Modality("blood", "measurements", (2,)),
)
VALUES: dict[str, Any] = {
    "picture": np.ones((2, 1, 2, 2)),
    "note": [[0, 4, -1], [1, -1, -1]],
    "blood": [[0.5, 1], [2, 3]],
}


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as e:
        part(OF, {**VALUES, **changes}, [0, 1], {"blood": [1, 0]})
    (problem,) = e.value.problems
    return problem


def test_what_is_absent_is_blank_and_said_at_the_end() -> None:
    made = part(OF, VALUES, [0, 1], {"note": [0, 1], "blood": [1, 0]})
    assert made.x.tolist() == [
        [1, 1, 1, 1, -1, -1, -1, 0.5, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, -1, -1, 0, 0, 1, 1, 0],
    ]


def test_bad_values_are_refused_by_modality_and_row() -> None:
    nan = float("nan")
    assert refused(blood=[[0, 1], [nan, 1]]).startswith(
        "modality 'blood': NaN or infinite numbers in row 1, in which it is absent"
    )
    assert refused(blood=[[nan, 1], [0, 1]]).startswith("modality 'blood': NaN or infinite numbers in row 0; allowed")
    assert refused(note=[[0, 5, 0], [0, 0, 0]]).startswith("modality 'note': word 0 to 5 found, allowed: -1 to 4")
    assert refused(blood=[[0], [1]]).startswith("modality 'blood': int64 (2, 1) found, needed: numbers (2, 2)")
    assert "'bloot' is no modality (did you mean 'blood'?)" in refused(bloot=[0, 1])
    with pytest.raises(ConfigError, match="row 1 has no modality"):
        part(OF, VALUES, [0, 1], {m.name: [1, 0] for m in OF})


def test_own_data_are_refused_too() -> None:
    good = part(OF, VALUES, [0, 1], {"blood": [1, 0]})
    d = Dataset("own", good, good, 2, ("a", "b"), "modalities", modalities=OF)
    assert own.checked(d).modalities == OF
    good.x[1, 8] = np.nan
    with pytest.raises(
        ConfigError, match="modality 'blood' holds NaN or infinite numbers in row 1, in which it is absent"
    ):
        own.checked(d)
    good.x[1, 8], good.x[:, -1] = 0, 0
    with pytest.raises(ConfigError, match="train: no row has modality 'blood'"):
        own.checked(d)
    with pytest.raises(ConfigError, match="without `modalities`"):
        own.checked(Dataset("own", good, good, 2, ("a", "b"), "modalities"))


def split(**asked: Any) -> Federation:
    return partition.build(toy.config("fedavg", **toy.merge(toy.MODAL, {"federation": {"modalities": asked}})))


def test_owners_have_their_modalities_alone_and_rows_of_nobody_keep_all() -> None:
    made = split(absent=0.0, owners={"image": 1, "text + measurements": 2})
    there = presence(made.arrays["x"], made.modalities)
    each = [there[made.train[c]] for c in range(made.population)]
    assert all((rows == rows[0]).all() for rows in each)
    assert sorted(rows[0].tolist() for rows in each) == sorted([[True, False, False]] * 2 + [[False, True, True]] * 3)
    assert there[made.pooled_test].all()
    absent = made.arrays["x"][made.train.rows][:, :9][~there[made.train.rows, 0]]
    assert len(absent) and not absent.any()
    assert Federation.from_numpy(made.numpy()).modalities == made.modalities


def test_shares_of_absent_ones_are_met_and_each_row_keeps_one() -> None:
    made = split(absent=0.3, absent_test=0.9)
    there = presence(made.arrays["x"], made.modalities)
    assert there.any(1).all()
    assert 1 - there[made.train.rows].mean() == pytest.approx(0.3, abs=0.08)
    assert 1 - there[made.pooled_test].mean() == pytest.approx(0.61, abs=0.1)  # 0.9 less what is kept
    uneven = split(absent=0.3, concentration=0.5)
    gone = [1 - presence(uneven.arrays["x"][uneven.train[c]], uneven.modalities).mean() for c in range(6)]
    assert max(gone) - min(gone) > 0.2


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        ({"imagen": 1}, "'imagen' names 'imagen' (did you mean 'image'?); the data have: image, text, measurements"),
        ({"image": 1, "text": 1}, "nobody of the 5 clients that take part has modality 'measurements'"),
    ],
)
def test_owners_of_what_there_is_not_are_refused(owners: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        split(absent=0.0, owners=owners)
    assert says in e.value.problems[0]


def test_data_of_one_kind_have_no_modalities() -> None:
    with pytest.raises(ConfigError, match=r"federation\.modalities: set, synthetic:blobs has rows of one kind"):
        partition.build(toy.config("fedavg", federation={"modalities": {"absent": 0.2}}))


def test_constructed_rows_tell_of_one_state_and_digits_are_cut() -> None:
    d = load(Named.model_validate({"name": "modalities:constructed", "examples": 60, "test": 20}), 1)
    assert [m.kind for m in d.modalities] == ["image", "text", "measurements"] and len(d.test.y) == 20
    whole = load(Named(name="digits"), 0)
    cut = load(Named(name="modalities:digits"), 0)
    quarters = cut.train.x[:, :64].reshape(-1, 2, 2, 4, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)
    assert np.array_equal(quarters, whole.train.x[:, 0])
    halves = load(Named.model_validate({"name": "modalities:digits", "cut": "halves", "sketch": True}), 0)
    assert [m.shape for m in halves.modalities] == [(8, 4), (8, 4), (8, 1)]


@pytest.mark.parametrize("model", [{"name": "crossformer", "dim": 4}, {"name": "linear", "dim": None}])
def test_other_networks_take_them_and_a_nan_in_what_is_absent_cannot_leak(model: dict[str, Any]) -> None:
    from rayfed.engine.resident import Resident

    asked = dict(toy.MODAL)
    asked["task"] = {**toy.MODAL["task"], "model": {n: v for n, v in model.items() if v is not None}}
    c = toy.config("fedavg", **asked)
    f = toy.federation(c)
    task = Resident(c, f, None, "cpu").task
    x = torch.as_tensor(f.arrays["x"][f.train[0]])
    answers = task.apply(task.initial, x)
    assert answers.shape == (len(x), 3) and bool(answers.isfinite().all())
    if model["name"] == "crossformer":
        broken, at = x.clone(), 0
        for i, m in enumerate(task.modalities):
            broken[:, at : at + m.size] = torch.where(
                x[:, -3 + i : x.shape[1] - 2 + i] > 0, x[:, at : at + m.size], torch.nan
            )
            at += m.size
        assert not bool(broken.isfinite().all()) and torch.equal(task.apply(task.initial, broken), answers)


def test_modalities_survive_plain_lists() -> None:
    assert modalities.of([list(m) for m in OF]) == OF
