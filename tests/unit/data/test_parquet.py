"""Parquet folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfed.data import columns
from rayfed.errors import ConfigError
from tests.unit.data.sets import check, load, pictures, refused, same

SHELF = Path(__file__).resolve().parents[4] / "shared" / "data"


def write(folder: Path, table: dict[str, Any], part: str = "train", shelf: dict[str, Any] | None = None) -> str:
    """Write one part of a folder; the name of its data set."""
    folder.mkdir(exist_ok=True)
    made = pa.table(table)
    if shelf is not None:
        made = made.replace_schema_metadata({"shelf": json.dumps(shelf)})
    pq.write_table(made, folder / f"{part}.parquet")
    return f"parquet:{folder}"


def packed(x: np.ndarray, fixed: bool = True) -> pa.Array:
    return pa.array([p.tobytes() for p in x], pa.binary(x[0].size) if fixed else pa.binary())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_a_shelf_folder_come_out_channels_first_in_0_to_1(tmp_path: Path, channels: int) -> None:
    a, b = pictures(6, c=channels), pictures(3, c=channels, seed=1)
    shelf = {"height": 2, "width": 3, "channels": channels, "label_names": ["cat", "dog", "owl"]}
    y = pa.array([0, 1, 2, 0, 1, 2], pa.int16())
    name = write(tmp_path, {"image": packed(a), "label": y, "client": list("ababab")}, shelf=shelf)
    write(tmp_path, {"image": packed(b), "label": y[:3], "client": list("abc")}, "test", shelf)
    assert check(name) == []
    d = load(name)
    assert (d.kind, d.classes, d.label_names, d.input_shape) == ("image", 3, ("cat", "dog", "owl"), (channels, 2, 3))
    assert d.train.x.dtype == np.float32 and d.train.x.flags.c_contiguous
    for n in range(6):
        for ch in range(channels):
            assert np.array_equal(d.train.x[n, ch], a[n, :, :, ch].astype(np.float32) / np.float32(255))
    assert np.array_equal(d.test.x, b.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert d.train.y.tolist() == [0, 1, 2, 0, 1, 2] and d.train.y.dtype == np.int64
    assert d.train.client.tolist() == list("ababab") and d.test.client.tolist() == list("abc")
    assert d.train.domain is None and d.train.split is None


def test_shape_and_column_names_can_be_options(tmp_path: Path) -> None:
    a = pictures(6)
    table = {
        "scan": packed(a, fixed=False), "finding": [0, 1, 0, 1, 0, 1], "ward": list("aabbcc"), "site": list("xyxyxy"),
        "use": ["train", "train", "valid", "train", "test", "test_unseen"],
    }  # fmt: skip
    name = write(tmp_path, table)
    own = {"image": "scan", "label": "finding", "client": "ward", "domain": "site", "split": "use", "shape": [2, 3, 1]}
    assert check(name, **own) == []
    d = load(name, **own)
    assert np.array_equal(d.train.x[:, 0], a[:4, :, :, 0].astype(np.float32) / np.float32(255))
    assert d.train.split.tolist() == ["train", "train", "valid", "train"]
    assert d.test.split.tolist() == ["test", "test_unseen"]
    assert (d.test.client.tolist(), d.test.domain.tolist()) == (["c", "c"], ["x", "y"])
    assert load(name, **{**own, "shape": [3, 2, 1]}).input_shape == (1, 3, 2)  # the option decides


def test_split_column_says_what_is_test_whatever_the_file(tmp_path: Path) -> None:
    def table(first: int, split: list[str]) -> dict[str, Any]:
        return {"a": np.arange(first, first + len(split)) * 1.0, "label": [0, 1] * (len(split) // 2), "split": split}

    name = write(tmp_path, table(0, ["train", "valid", "test", "train"]))
    write(tmp_path, table(4, ["test_unseen", "train"]), "test")
    d = load(name, features=["a"])
    assert d.train.split.tolist() == ["train", "valid", "train", "train"]
    assert d.test.split.tolist() == ["test", "test_unseen"]
    mean, sd = np.mean([0, 1, 3, 5]), np.std([0, 1, 3, 5])
    assert d.train.x[:, 0] == pytest.approx((np.array([0, 1, 3, 5]) - mean) / sd, rel=1e-6)
    assert d.test.x[:, 0] == pytest.approx((np.array([2, 4]) - mean) / sd, rel=1e-6)


def test_features_are_standardised_with_the_training_rows_and_gaps_become_their_mean(tmp_path: Path) -> None:
    train = {"a": [1.0, 2.0, 3.0, None], "b": [7, 7, 7, 7], "c": [True, False, False, False], "label": [0, 1, 0, 1]}
    test = {"a": [5.0, None, float("nan")], "b": [7, 7, 7], "c": [True, True, False], "label": [0, 1, 1]}
    name = write(tmp_path, train)
    write(tmp_path, test, "test")
    d = load(name, features=["a", "b", "c"])
    assert (d.kind, d.input_shape, d.classes, d.label_names) == ("tabular", (3,), 2, ("0", "1"))
    r = 1.5**0.5  # 1 / deviation of 1, 2, 3
    s = 3**0.5  # a quarter of ones: mean 1/4, deviation sqrt(3)/4
    by_hand = [[-r, 0, s], [0, 0, -1 / s], [r, 0, -1 / s], [0, 0, -1 / s]]
    assert d.train.x.tolist() == [pytest.approx(row, rel=1e-6, abs=1e-12) for row in by_hand]
    assert d.test.x.tolist() == [pytest.approx(row, rel=1e-6) for row in ([3 * r, 0, s], [0, 0, s], [0, 0, -1 / s])]
    assert d.train.x.dtype == np.float32


def test_large_offsets_do_not_swallow_a_column_and_an_unmeasured_one_stays_0() -> None:
    train = np.stack([1e6 + np.array([0.0, 1.0]), np.full(2, np.nan)], 1)
    a, b = columns.standardised(train, np.array([[1e6 + 2, np.nan]]), "ab", "FILE")
    assert a.tolist() == [[-1, 0], [1, 0]] and b.tolist() == [[3, 0]]


def test_features_can_be_named_by_the_file(tmp_path: Path) -> None:
    shelf = {"features": ["a", "b"]}
    name = write(tmp_path, {"b": [1.0, 3.0], "a": [0, 20], "label": [0, 1]}, shelf=shelf)
    write(tmp_path, {"b": [3.0], "a": [0], "label": [1]}, "test", shelf)
    assert load(name).test.x.tolist() == [[-1, 1]]
    assert load(name, features=["b"]).input_shape == (1,)


def test_text_labels_become_their_sorted_values(tmp_path: Path) -> None:
    y = ["pear", "apple", "fig", "apple"]
    name = write(tmp_path, {"a": [1.0, 2, 3, 4], "label": y})
    write(tmp_path, {"a": [1.0], "label": ["kiwi"]}, "test")
    d = load(name, features=["a"])
    assert d.label_names == ("apple", "fig", "kiwi", "pear") and d.classes == 4
    assert d.train.y.tolist() == [3, 0, 1, 0] and d.test.y.tolist() == [2]
    write(tmp_path, {"a": [1.0, 2, 3, 4], "label": pa.array(y).dictionary_encode()})
    assert load(name, features=["a"]).train.y.tolist() == [3, 0, 1, 0]


def test_text_labels_follow_the_files_own_names(tmp_path: Path) -> None:
    shelf = {"label_names": ["low", "high"]}
    name = write(tmp_path, {"a": [1.0, 2, 3], "label": ["high", "low", "high"]}, shelf=shelf)
    d = load(name, features=["a"])
    assert d.label_names == ("low", "high")
    assert sorted(np.concatenate([d.train.y, d.test.y]).tolist()) == [0, 1, 1]
    write(tmp_path, {"a": [1.0, 2], "label": ["high", "middle"]}, shelf=shelf)
    assert "holds 'middle', its label names are low, high" in refused(name, features=["a"])


def test_without_a_test_file_a_stratified_share_is_the_test_set(tmp_path: Path) -> None:
    y = np.repeat([0, 1, 2], [50, 20, 10])
    name = write(tmp_path, {"a": np.arange(80.0), "label": y, "client": [f"c{i}" for i in range(80)]})
    d = load(name, features=["a"])
    assert np.bincount(d.test.y).tolist() == [10, 4, 2] and np.bincount(d.train.y).tolist() == [40, 16, 8]
    assert sorted([*d.train.client, *d.test.client]) == sorted(f"c{i}" for i in range(80))
    again = load(name, 7, features=["a"])
    assert same(d.train, again.train) and same(d.test, again.test)  # not the seed's choice
    assert np.bincount(load(name, features=["a"], test=0.5).test.y).tolist() == [25, 10, 5]


def test_rows_chosen_for_the_test_set_are_no_longer_train_or_valid(tmp_path: Path) -> None:
    split = ["train", "valid"] * 20
    d = load(write(tmp_path, {"a": np.arange(40.0), "label": [0, 1] * 20, "split": split}), features=["a"])
    assert len(d.test.y) == 8 and d.test.split is None
    assert len(d.train.y) == 32 and set(d.train.split) == {"train", "valid"}


FLOATS = {"a": [1.0, 2.0, 3.0], "label": [0, 1, 1], "client": ["x", "y", "z"], "split": ["train", "train", "test"]}


IMAGES = {"image": packed(pictures(3)), "label": [0, 1, 1]}


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (IMAGES, {"image": "imge", "shape": [2, 3, 1]}, ".image: {} has no column 'imge' (did you mean 'image'?)"),
        (IMAGES, {"label": "labels", "shape": [2, 3, 1]}, ".label: {} has no column 'labels' (did you mean 'label'?)"),
        (FLOATS, {"features": ["a", "clent"]}, ".features: {} has no column 'clent' (did you mean 'client'?)"),
        (
            FLOATS,
            {"features": ["a"], "client": "cliant"},
            ".client: {} has no column 'cliant' (did you mean 'client'?)",
        ),
        (FLOATS, {"features": ["a"], "domain": "q"}, ".domain: {} has no column 'q'; columns: a, label, client, split"),
        (FLOATS, {"features": ["a"], "split": "splitt"}, ".split: {} has no column 'splitt' (did you mean 'split'?)"),
        (FLOATS, {"features": ["client"]}, ".features: column 'client' of {} is string, allowed: numbers"),
        (FLOATS, {"features": []}, ".features: [] found, allowed: a list of numeric columns"),
        (FLOATS, {"features": "a"}, ".features: 'a' found, allowed: a list of numeric columns"),
        (FLOATS, {"features": ["a"], "test": 1}, ".test: 1 found, allowed: a share of the training rows"),
        (FLOATS, {"features": ["a"], "client": 3}, ".client: 3 found, allowed: the name of a column"),
        (FLOATS, {"feature": ["a"]}, ".feature: unknown option of parquet:"),
        (FLOATS, {"features": ["a"], "image": "a"}, ".features: image and features are both set"),
        (FLOATS, {"image": "a"}, ".image: column 'a' of {} is double, allowed: raw bytes"),
        ({"text": [1, 2], "label": [0, 1]}, {}, ".text: column 'text' of {} is int64, allowed: text"),
        (FLOATS, {"text": "txt"}, ".text: {} has no column 'txt'"),
        (FLOATS, {"text": "a", "features": ["a"]}, ".features: text and features are both set"),
        (FLOATS, {"features": ["a"], "length": 0}, ".length: 0 found, allowed: tokens of a text"),
        (IMAGES, {}, ".shape: missing; images need [height, width, channels]"),
        (IMAGES, {"shape": [2, 3, 3]}, ".shape: [2, 3, 3] is 18 bytes, the images of {} have 6"),
        (IMAGES, {"shape": [2, 3]}, ".shape: [2, 3] found, allowed: [height, width, channels]"),
        (IMAGES, {"shape": [2, 3, 0]}, ".shape: [2, 3, 0] found, allowed: [height, width, channels]"),
    ],
)
def test_wrong_settings_of_a_folder_are_found_from_its_schema(
    tmp_path: Path, table: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    name = write(tmp_path, table)
    found = check(name, **options)
    assert len(found) == 1
    assert found[0].startswith("task.data" + says.format(tmp_path / "train.parquet"))
    assert refused(name, **options) == found[0]


def test_an_unknown_option_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "(did you mean 'features'?)" in check(write(tmp_path, FLOATS), feature=["a"])[0]


def test_the_test_file_is_checked_too(tmp_path: Path) -> None:
    name = write(tmp_path, FLOATS)
    write(tmp_path, {"b": [1.0], "label": [1], "split": ["test"], "client": ["x"]}, "test")
    (problem,) = check(name, features=["a"])
    assert f"{tmp_path / 'test.parquet'} has no column 'a'" in problem


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, None, 1], "1 rows of {} have no value in column 'label'"),
        (["a", None, "b"], "1 rows of {} have no value in column 'label'"),
        ([0.0, 0.5, 1.0], "column 'label' of {} is double, allowed: whole numbers or text"),
        ([[0, 1], [1], [0]], "column 'label' of {} holds lists (list<"),
        ([[0, 1], [1], [0]], "one label a row is needed"),
        ([-1, -1, -1], "every label of {} is -1"),
    ],
)
def test_labels_that_are_not_classes_are_refused(tmp_path: Path, labels: list[Any], says: str) -> None:
    text = refused(write(tmp_path, {"a": [1.0, 2.0, 3.0], "label": labels}), features=["a"])
    assert text.startswith("task.data.") and says.format(tmp_path / "train.parquet") in text


def test_labels_beyond_the_given_names_are_refused(tmp_path: Path) -> None:
    name = write(tmp_path, {"a": [1.0, 2], "label": [0, 2]}, shelf={"label_names": ["a", "b"]})
    assert "holds class 2, but 2 label names are given" in refused(name, features=["a"])


@pytest.mark.parametrize("value", ["tests", "", None])
def test_an_unknown_split_is_named_with_the_allowed_ones(tmp_path: Path, value: str | None) -> None:
    name = write(tmp_path, {"a": [1.0, 2], "label": [0, 1], "split": ["train", value]})
    text = refused(name, features=["a"])
    assert f"holds {value or ''!r}" in text and "allowed: train, valid, test, test_unseen" in text
    assert ("(did you mean 'test'?)" in text) == (value == "tests")


def test_a_folder_needs_rows_to_train_on(tmp_path: Path) -> None:
    table = {"a": [1.0, 2], "label": [0, 1], "split": ["test", "test_unseen"]}
    assert "is for training (train or valid)" in refused(write(tmp_path, table), features=["a"])
    write(tmp_path, {"a": pa.array([], pa.float64()), "label": pa.array([], pa.int64())})
    assert "train.parquet has no rows" in refused(f"parquet:{tmp_path}", features=["a"])


def test_missing_and_unreadable_folders_are_sentences(tmp_path: Path) -> None:
    assert check(f"parquet:{tmp_path}/nowhere")[0].startswith(f"task.data: folder '{tmp_path}/nowhere' does not exist")
    assert check(f"parquet:{tmp_path}") == [
        f"task.data: {tmp_path / 'train.parquet'} does not exist; found: no Parquet file"
    ]
    write(tmp_path, FLOATS, "rows")
    assert check(f"parquet:{tmp_path}")[0].endswith("found: rows.parquet")
    (tmp_path / "train.parquet").write_bytes(b"nonsense")
    assert "is not readable as Parquet" in refused(f"parquet:{tmp_path}")


def test_images_without_bytes_or_of_another_size_are_refused(tmp_path: Path) -> None:
    one = bytes(6)
    name = write(tmp_path, {"image": pa.array([one, None], pa.binary()), "label": [0, 1]})
    assert f"1 rows of {tmp_path / 'train.parquet'} have no image" in refused(name, shape=[2, 3, 1])
    write(tmp_path, {"image": pa.array([one, one + b"."], pa.binary()), "label": [0, 1]})
    assert "do not have 2 x 3 x 1 bytes each" in refused(name, shape=[2, 3, 1])


def test_images_whose_sizes_only_add_up_are_refused(tmp_path: Path) -> None:
    name = write(tmp_path, {"image": pa.array([bytes(5), bytes(7)], pa.binary()), "label": [0, 1]})
    assert "do not have 2 x 3 x 1 bytes each" in refused(name, shape=[2, 3, 1])


@pytest.mark.parametrize("column", ["client", "domain", "split"])
def test_a_column_that_only_the_training_file_has_is_a_sentence_or_no_matter(tmp_path: Path, column: str) -> None:
    name = write(tmp_path, {"a": [1.0, 2], "label": [0, 1], column: ["train", "train"]})
    write(tmp_path, {"a": [1.0], "label": [1]}, "test")
    try:
        d = load(name, features=["a"])
    except ConfigError as e:
        assert column in str(e)
    else:
        assert len(d.test.y) == 1


@pytest.mark.skipif(not (SHELF / "mnist_writers").is_dir(), reason="the shelf of real data sets is not here")
def test_handwriting_with_writers_and_unseen_writers() -> None:
    d = load(f"parquet:{SHELF / 'mnist_writers'}")
    assert (d.kind, d.input_shape, d.classes) == ("image", (1, 28, 28), 10)
    assert (len(d.train.y), len(d.test.y)) == (18023, 9557)
    counts = [1750, 2017, 1801, 1851, 1796, 1676, 1776, 1878, 1732, 1746]
    assert np.bincount(d.train.y).tolist() == counts
    seen, strangers = (set(d.test.client[d.test.split == s]) for s in ("test", "test_unseen"))
    assert len(set(d.train.client)) == 200 and seen == set(d.train.client)
    assert len(strangers) == 80 and not strangers & seen
    assert d.train.x.min() == 0 and d.train.x.max() == 1


@pytest.mark.skipif(not (SHELF / "heart_centres").is_dir(), reason="the shelf of real data sets is not here")
def test_patients_of_four_hospitals_with_missing_measurements() -> None:
    d = load(f"parquet:{SHELF / 'heart_centres'}")
    assert (d.kind, d.input_shape, d.classes) == ("tabular", (13,), 2)
    assert np.bincount(d.train.y).tolist() == [273, 340] and len(d.test.y) == 307
    assert len(set(d.train.client)) == 4
    assert np.isfinite(d.train.x).all() and np.isfinite(d.test.x).all()
    assert d.train.x.mean(0) == pytest.approx(np.zeros(13), abs=1e-4)


def test_a_single_file(tmp_path: Path) -> None:
    write(tmp_path, {"a": np.arange(10.0), "label": [0, 1] * 5}, "birds")
    d = load(f"parquet:{tmp_path}/birds.parquet", features=["a"])
    assert (len(d.train.y), len(d.test.y)) == (8, 2)
    (tmp_path / "birds.csv").write_text("a,label\n1,0\n")
    assert check(f"parquet:{tmp_path}/birds.csv") == [
        f"task.data: '{tmp_path}/birds.csv' is no Parquet file; hf:{tmp_path}/birds.csv reads it"
    ]
