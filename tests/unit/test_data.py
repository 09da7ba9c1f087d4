"""Where examples come from: the bundled digits, Parquet folders, `datasets`, generators, and a user's own function."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part, columns, stratified
from rayfed.errors import ConfigError

SHELF = Path(__file__).resolve().parents[3] / "shared" / "data"


def load(name: str, seed: int = 0, /, **options: Any) -> Dataset:
    return data.load(Named.model_validate({"name": name, **options}), seed)


def check(name: str, /, **options: Any) -> list[str]:
    return data.check(Named.model_validate({"name": name, **options}))


def refused(name: str, /, **options: Any) -> str:
    """The text of the ConfigError that loading ends with."""
    with pytest.raises(ConfigError) as e:
        load(name, **options)
    return str(e.value)


def same(a: Part, b: Part) -> bool:
    return all(
        (u is None and v is None) or (u is not None and v is not None and u.dtype == v.dtype and np.array_equal(u, v))
        for u, v in ((getattr(a, n), getattr(b, n)) for n in ("x", "y", "client", "domain", "split"))
    )


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digit", "did you mean 'digits'?"),
        ("digits:all", "'digits:all' is unknown"),
        ("syntetic:blobs", "did you mean 'synthetic:blobs'?"),
        ("synthetic:blob", "did you mean 'synthetic:blobs'?"),
        ("synthetic", "not complete; known: synthetic:blobs, synthetic:images, synthetic:logistic"),
        ("parquet:", "not complete; known: parquet:DIR"),
        ("hf", "not complete; known: hf:NAME_OR_PATH"),
    ],
)
def test_unknown_and_incomplete_names_are_answered_with_the_known_ones(name: str, says: str) -> None:
    (problem,) = check(name)
    assert problem.startswith("task.data: ") and says in problem
    assert refused(name) == problem


def test_stratified_takes_the_same_share_of_every_class_and_never_all_of_one() -> None:
    y = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    mask = stratified(y, 0.2, np.random.default_rng(0))
    assert np.bincount(y[mask], minlength=4).tolist() == [20, 2, 1, 0]
    assert np.bincount(y[stratified(y, 0.99, np.random.default_rng(0))]).tolist() == [99, 9, 1]


def test_take_keeps_all_columns_of_a_part_together() -> None:
    p = Part(np.arange(6.0).reshape(3, 2), np.array([5, 6, 7]), np.array(["a", "b", "c"]), None, np.array(["x"] * 3))
    q = p.take(np.array([2, 0]))
    assert (q.x.tolist(), q.y.tolist(), q.client.tolist()) == ([[4, 5], [0, 1]], [7, 5], ["c", "a"])
    assert q.domain is None and q.split.tolist() == ["x", "x"]


# -- digits ------------------------------------------------------------------------------------------------------------


def test_digits_are_the_bundled_images_and_36_of_each_are_the_test_set() -> None:
    from sklearn.datasets import load_digits

    d, whole = load("digits"), load_digits()
    assert (d.kind, d.classes, d.input_shape, d.label_names) == ("image", 10, (1, 8, 8), tuple("0123456789"))
    assert (len(d.train.y), len(d.test.y)) == (1437, 360)
    assert np.bincount(d.test.y).tolist() == [36] * 10
    assert d.train.x.dtype == np.float32 and d.train.y.dtype == np.int64
    assert d.train.x.min() == 0 and d.train.x.max() == 1

    def rows(x: np.ndarray, y: np.ndarray) -> list[list[int]]:
        return sorted(np.concatenate([np.rint(x.reshape(len(x), -1) * 16), y[:, None]], 1).astype(np.int8).tolist())

    both = rows(np.concatenate([d.train.x, d.test.x]), np.concatenate([d.train.y, d.test.y]))
    assert both == rows(whole.images / 16, whole.target)


def test_the_test_digits_are_the_same_for_every_seed() -> None:
    first = load("digits", 0)
    for seed in (1, 2**40):
        again = load("digits", seed)
        assert same(first.train, again.train) and same(first.test, again.test)


def test_digits_have_no_options() -> None:
    assert check("digits", size=8) == ["task.data.size: unknown option of digits; known: none"]


# -- Parquet folders ---------------------------------------------------------------------------------------------------


def write(folder: Path, table: dict[str, Any], part: str = "train", shelf: dict[str, Any] | None = None) -> str:
    """Write one part of a folder; the name of its data set."""
    folder.mkdir(exist_ok=True)
    made = pa.table(table)
    if shelf is not None:
        made = made.replace_schema_metadata({"shelf": json.dumps(shelf)})
    pq.write_table(made, folder / f"{part}.parquet")
    return f"parquet:{folder}"


def pictures(n: int, h: int = 2, w: int = 3, c: int = 1, seed: int = 0) -> np.ndarray:
    """Bytes (n, H, W, C), 255 among them."""
    x = np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    x[0, 0, 0] = 255
    return x


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
        (
            FLOATS,
            {},
            ": {} has no column 'image'; name it (image: COLUMN), a column of texts (text: COLUMN) or numeric columns (features: [...]);",
        ),
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


# -- the `datasets` library --------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Any:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def image_set(hub: Any, x: np.ndarray, y: list[int], names: list[str], **more: Any) -> Any:
    from PIL import Image

    features = hub.Features({
        "img": hub.Image(), "label": hub.ClassLabel(names=names), **{n: hub.Value("string") for n in more}
    })  # fmt: skip
    shown = [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in x]
    return hub.Dataset.from_dict({"img": shown, "label": y, **more}, features=features)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_dict_of_pictures(hub: Any, tmp_path: Path, channels: int) -> None:
    a, b = pictures(4, 4, 6, channels), pictures(2, 4, 6, channels, seed=1)
    where = tmp_path / "set"
    hub.DatasetDict({
        "train": image_set(hub, a, [0, 1, 1, 0], ["cat", "dog"], who=["x", "y", "x", None]),
        "test": image_set(hub, b, [1, 0], ["cat", "dog"], who=["x", "z"]),
    }).save_to_disk(where)  # fmt: skip
    assert check(f"hf:{where}") == []
    d = load(f"hf:{where}", client="who")
    assert (d.kind, d.label_names, d.classes, d.input_shape) == ("image", ("cat", "dog"), 2, (channels, 4, 6))
    assert np.array_equal(d.train.x, a.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert np.array_equal(d.test.x, b.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert d.train.y.tolist() == [0, 1, 1, 0] and d.test.y.tolist() == [1, 0]
    assert d.train.client.tolist() == ["x", "y", "x", ""] and d.test.client.tolist() == ["x", "z"]


def test_saved_texts_and_instructions(hub: Any, tmp_path: Path) -> None:
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}
    hub.DatasetDict({"train": hub.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "texts")
    assert check(f"hf:{tmp_path / 'texts'}", length=8) == []
    d = load(f"hf:{tmp_path / 'texts'}", length=8, test=0.5)
    assert (d.kind, d.label_names, len(d.train.x), len(d.test.x)) == ("text", ("no", "yes"), 10, 10)
    assert {*d.train.x, *d.test.x} == set(rows["text"])
    assert all(d.label_names[y] == ("yes" if int(t[1:]) % 2 else "no") for t, y in zip(d.train.x, d.train.y))
    records = {"instruction": ["add"] * 6, "context": ["1 2"] * 6, "response": ["3"] * 6, "category": ["sum", "qa"] * 3}
    hub.Dataset.from_dict(records).save_to_disk(tmp_path / "records")
    d = load(f"hf:{tmp_path / 'records'}", client="category")
    assert (d.kind, d.label_names) == ("instruct", ("qa", "sum"))
    assert d.train.x[0].tolist() == ["add", "1 2", "3"] and set(d.train.client) == {"sum", "qa"}
    assert "has no column 'txt' (did you mean 'text'?)" in refused(f"hf:{tmp_path / 'texts'}", text="txt")


def test_a_saved_table_of_numbers_without_a_test_split(hub: Any, tmp_path: Path) -> None:
    where, y = tmp_path / "set", np.repeat([0, 1], [30, 10])
    a = np.arange(40.0)
    hub.Dataset.from_dict({"a": a, "b": a[::-1] * 2, "kind": y}).save_to_disk(where)
    d = load(f"hf:{where}", label="kind", features=["a", "b"])
    assert (d.kind, d.input_shape, d.label_names) == ("tabular", (2,), ("0", "1"))
    assert np.bincount(d.train.y).tolist() == [24, 8] and np.bincount(d.test.y).tolist() == [6, 2]
    assert d.train.x.mean(0) == pytest.approx([0, 0], abs=1e-6) and d.train.x.std(0) == pytest.approx([1, 1], rel=1e-5)
    every = np.concatenate([d.train.x, d.test.x])[:, 0]
    assert np.diff(np.sort(every)) == pytest.approx(np.full(39, np.diff(np.sort(every))[0]), rel=1e-4)  # each row once
    again = load(f"hf:{where}", 5, label="kind", features=["a", "b"])
    assert same(d.train, again.train) and same(d.test, again.test)
    half = load(f"hf:{where}", label="kind", features=["a", "b"], test=0.5)
    assert np.bincount(half.test.y).tolist() == [15, 5]


def test_splits_can_have_other_names(hub: Any, tmp_path: Path) -> None:
    def table(values: list[float], y: list[str]) -> Any:
        return hub.Dataset.from_dict({"a": values, "label": y})

    splits = {"fit": table([1.0, 3.0], ["b", "a"]), "validation": table([5.0], ["a"]), "test": table([9.0], ["b"])}
    hub.DatasetDict(splits).save_to_disk(tmp_path / "set")
    name = f"hf:{tmp_path / 'set'}"
    d = load(name, train="fit", test="validation", features=["a"])
    assert d.train.x.tolist() == [[-1], [1]] and d.test.x.tolist() == [[3]]
    assert d.label_names == ("a", "b") and d.train.y.tolist() == [1, 0] and d.test.y.tolist() == [0]
    assert load(name, train="fit", features=["a"]).test.x.tolist() == [[7]]
    assert "has no split 'train'; splits: fit, validation, test (train: NAME)" in refused(name, features=["a"])
    text = refused(name, train="fit", test="valid", features=["a"])
    assert "has no split 'valid' (did you mean 'validation'?)" in text


def test_numbers_in_0_to_1_are_pictures_already(hub: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 3, 2)).astype(np.float32)
    hub.Dataset.from_dict({"image": x.tolist(), "label": [0, 1, 0, 1]}).save_to_disk(tmp_path / "set")
    d = load(f"hf:{tmp_path / 'set'}", test=0.5)
    assert d.input_shape == (1, 3, 2)
    got = np.concatenate([d.train.x, d.test.x])
    assert sorted(got[:, 0].tolist()) == sorted(x.tolist())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"features": ["a"], "label": "lable"},
            "has no column 'lable' (did you mean 'label'?); columns: a, label, t, u",
        ),
        ({"features": ["aa"]}, "has no column 'aa' (did you mean 'a'?)"),
        ({}, "has no column 'image'; name it (image: COLUMN)"),
        ({"features": ["t"]}, "task.data.features: column 't' of "),
        ({"features": ["a"], "label": "u"}, "task.data.test: every label of "),
        ({"features": ["a"], "clients": "t"}, "unknown option of hf:"),
        ({"features": ["a"], "test": 2.0}, "task.data.test: 2.0 found, allowed: a share"),
        ({"features": ["a"], "train": 1}, "task.data.train: 1 found, allowed: a name"),
        ({"features": "a"}, "task.data.features: 'a' found, allowed: a list of numeric columns"),
    ],
)
def test_wrong_settings_of_a_saved_set(hub: Any, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    columns = {"a": [1.0, 2, 3, 4], "label": [0, 1, 0, 1], "t": list("pqrs"), "u": [-1, -1, -1, -1]}
    hub.Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    text = refused(f"hf:{tmp_path / 'set'}", **options)
    assert says in text
    if options.get("label") != "u":  # whose rows have to be read
        assert check(f"hf:{tmp_path / 'set'}", **options) == text.split("\n")


def test_pictures_of_several_sizes_are_refused(hub: Any, tmp_path: Path) -> None:
    from PIL import Image

    shown = [Image.fromarray(np.zeros(s, np.uint8)) for s in ((4, 4), (4, 5))]
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    hub.Dataset.from_dict({"image": shown, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "set")
    assert "must have one size; found 2: 4x4, 4x5" in refused(f"hf:{tmp_path / 'set'}")


def test_an_absent_or_empty_folder_is_seen_before_anything_is_asked(tmp_path: Path) -> None:
    assert check(f"hf:{tmp_path}/gone") == [f"task.data: folder '{tmp_path}/gone' does not exist"]
    assert check("hf:./gone") == ["task.data: folder './gone' does not exist"]
    assert check(f"hf:{tmp_path}") == [f"task.data: folder '{tmp_path}' is empty"]
    assert check("hf:owner/name") == []


# -- generators --------------------------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "blobs": {"examples": 200, "test": 40, "classes": 4, "features": 5},
    "images": {"examples": 90, "test": 30, "classes": 3, "size": 6, "channels": 2},
    "logistic": {"examples": 600, "clients": 7, "classes": 3, "features": 8},
}


@pytest.mark.parametrize("kind", SMALL)
def test_generators_draw_from_the_seed_alone(kind: str) -> None:
    first, again, other = (load(f"synthetic:{kind}", s, **SMALL[kind]) for s in (3, 3, 4))
    assert same(first.train, again.train) and same(first.test, again.test)
    n = min(len(first.train.y), len(other.train.y))
    assert not np.array_equal(first.train.x[:n], other.train.x[:n])
    assert not np.array_equal(first.train.y[:n], other.train.y[:n])


@pytest.mark.parametrize(
    ("kind", "shape", "what"), [("blobs", (5,), "tabular"), ("images", (2, 6, 6), "image")]
)  # fmt: skip
def test_generated_sets_have_the_asked_shapes_and_even_classes(kind: str, shape: tuple[int, ...], what: str) -> None:
    o = SMALL[kind]
    d = load(f"synthetic:{kind}", 1, **o)
    assert (d.kind, d.input_shape, d.classes) == (what, shape, o["classes"])
    assert d.train.x.shape == (o["examples"], *shape) and d.test.x.shape == (o["test"], *shape)
    assert (d.train.x.dtype, d.train.y.dtype) == (np.float32, np.int64)
    every = np.bincount(np.concatenate([d.train.y, d.test.y]))
    assert every.tolist() == [(o["examples"] + o["test"]) // o["classes"]] * o["classes"]
    assert d.train.client is None and d.label_names == tuple(map(str, range(o["classes"])))


def test_blobs_are_gaussians_of_the_asked_noise_and_separation() -> None:
    o = {"examples": 6000, "test": 0, "classes": 3, "features": 40}
    d = load("synthetic:blobs", 0, **o, noise=0.5, separation=3.0)
    centres = np.stack([d.train.x[d.train.y == c].mean(0) for c in range(3)])
    assert (d.train.x - centres[d.train.y]).std() == pytest.approx(0.5, rel=0.02)
    assert centres.std() == pytest.approx(3.0, rel=0.2)
    assert len(d.test.y) == 0 and d.test.x.shape == (0, 40)
    exact = load("synthetic:blobs", 0, **o, noise=0)
    assert len(np.unique(exact.train.x, axis=0)) == 3


def test_images_are_one_pattern_per_class_under_noise() -> None:
    d = load("synthetic:images", 2, **SMALL["images"], noise=0)
    patterns = [np.unique(d.train.x[d.train.y == c], axis=0) for c in range(3)]
    assert [len(p) for p in patterns] == [1, 1, 1]
    for p in patterns:
        assert p.min((0, 2, 3)).tolist() == [0, 0] and p.max((0, 2, 3)) == pytest.approx([1, 1])
    noisy = load("synthetic:images", 2, **SMALL["images"])
    assert noisy.train.x.min() >= 0 and noisy.train.x.max() <= 1
    clear = np.concatenate(patterns)[noisy.train.y]
    assert 0.1 < (noisy.train.x - clear).std() < 0.3  # 0.3 before clipping


def test_logistic_has_natural_clients_with_a_tenth_of_test_rows() -> None:
    d = load("synthetic:logistic", 5, **SMALL["logistic"])
    assert d.kind == "tabular" and d.input_shape == (8,)
    names = [str(k) for k in range(7)]
    assert sorted(set(d.train.client)) == names == sorted(set(d.test.client))
    assert set(d.train.split) == {"train"} and set(d.test.split) == {"test"}
    train, test = ([int((p.client == k).sum()) for k in names] for p in (d.train, d.test))
    sizes = np.add(train, test)
    assert sizes.min() >= 10 and test == (sizes // 10).tolist() and sizes.std() > 20
    assert 600 - 7 <= sizes.sum() <= 600 + 70


def test_logistic_labels_are_the_best_of_one_linear_map_per_client() -> None:
    """With two classes a hyperplane tells them apart inside every client, but not in all of them together."""
    from sklearn.linear_model import LogisticRegression

    d = load("synthetic:logistic", 1, examples=1500, clients=5, classes=2, features=4)

    def fit(rows: np.ndarray) -> float:
        x, y = d.train.x[rows].astype(float), d.train.y[rows]
        if len(set(y)) == 1:
            return 1.0
        x = (x - x.mean(0)) / x.std(0)
        return float(LogisticRegression(C=1e6, max_iter=5000).fit(x, y).score(x, y))

    scores = [fit(d.train.client == str(k)) for k in range(5)]
    assert min(scores) > 0.99
    assert len({k for k in range(5) if len(set(d.train.y[d.train.client == str(k)])) == 2}) >= 2
    assert fit(np.ones(len(d.train.y), bool)) < 0.97


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("blobs", {"clases": 3}, ".clases: unknown option of synthetic:blobs (did you mean 'classes'?)"),
        ("blobs", {"classes": 1}, ".classes: 1 found, allowed: a whole number >= 2"),
        ("blobs", {"classes": 3.0}, ".classes: 3.0 found, allowed: a whole number >= 2"),
        ("blobs", {"features": True}, ".features: True found, allowed: a whole number >= 1"),
        ("blobs", {"noise": -1}, ".noise: -1 found, allowed: a number >= 0"),
        ("images", {"size": 1}, ".size: 1 found, allowed: a whole number >= 2"),
        ("logistic", {"alpha": "big"}, ".alpha: 'big' found, allowed: a number >= 0"),
    ],
)
def test_wrong_options_of_generators(kind: str, options: dict[str, Any], says: str) -> None:
    (problem,) = check(f"synthetic:{kind}", **options)
    assert problem.startswith("task.data" + says)
    assert refused(f"synthetic:{kind}", **options) == problem


# -- a user's own function ---------------------------------------------------------------------------------------------

OWN = """
import numpy as np
from rayfed.data import Dataset, Part

def make(seed, rows=4, *, scale=1.0):
    x = np.full((rows, 3), scale * seed)
    return Dataset("mine", Part(x, np.arange(rows) % 2), Part(x[:2], np.array([0, 1])), 2, (0, 1), "tabular")
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Any]:
    """Writes a file and gives the name of its function; forgets the modules afterwards."""
    before = set(sys.modules)

    def made(text: str, function: str = "make") -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:{function}"

    yield made
    for n in set(sys.modules) - before:
        if n.startswith("rayfed_user_"):
            del sys.modules[n]


def test_a_users_function_is_called_with_seed_and_options(own: Any) -> None:
    name = own(OWN)
    assert check(name, rows=6, scale=0.5) == []
    d = load(name, 8, rows=6, scale=0.5)
    assert d.name == "mine" and d.input_shape == (3,) and d.label_names == ("0", "1")
    assert np.array_equal(d.train.x, np.full((6, 3), 4.0, np.float32)) and d.train.x.dtype == np.float32
    assert d.train.y.tolist() == [0, 1] * 3 and d.train.y.dtype == np.int64
    assert len(load(name, 1).train.y) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"row": 3}, ".row: unknown option of {} (did you mean 'rows'?); known: rows, scale"),
        ({"seed": 3}, ".seed: unknown option of {}; known: rows, scale"),
    ],
)
def test_options_are_held_against_the_signature(own: Any, options: dict[str, Any], says: str) -> None:
    name = own(OWN)
    assert check(name, **options) == ["task.data" + says.format(name)]


def test_a_file_is_checked_without_being_run(own: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    body = f"open({str(ran)!r}, 'w')\nraise OSError('no such disk')\ndef make(seed, *, rows): pass\n"
    name = own(body)
    assert check(name, rows=3) == []
    assert check(name) == [f"task.data.rows: missing, {name} needs it"]
    assert "has no function 'mak' (did you mean 'make'?); it has: make" in check(own(body, "mak"))[0]
    assert not ran.exists()
    text = refused(name, rows=3)
    assert ran.exists() and "mine.py cannot be imported: OSError: no such disk" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def make(): pass", "takes 0 arguments, it is called with 1 and the options"),
        ("def make(seed: pass", "mine.py is not readable as Python"),
        ("x = 1", "has no function 'make'; it has: none"),
    ],
)
def test_files_without_a_fitting_function(own: Any, text: str, says: str) -> None:
    (problem,) = check(own(text))
    assert says in problem


def test_functions_made_in_another_way_are_left_to_the_call(own: Any) -> None:
    assert check(own("make = lambda seed: None")) == []
    assert check(own("from numpy import zeros as make")) == []
    assert check(own("def make(*args, **more): pass"), anything=1) == []
    assert "has no function 'make'" in refused(own("make = 3"))


def test_a_name_needs_a_file_and_a_function(tmp_path: Path) -> None:
    assert check(f"{tmp_path}/gone.py:make") == [f"task.data: file '{tmp_path}/gone.py' does not exist"]
    assert "needed: path/to/file.py:function" in check(f"{tmp_path}/gone.py")[0]


def test_an_error_inside_the_function_stays_the_cause(own: Any) -> None:
    name = own("def make(seed):\n    return {}['colour']\n")
    with pytest.raises(ConfigError, match="raised KeyError: 'colour'") as e:
        load(name)
    assert isinstance(e.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("None", "returned NoneType, needed: rayfed.data.Dataset"),
        ("D(P(x[:0], y[:0]), P(x, y))", "it has no training rows"),
        ("D(P(x, y[:3]), P(x, y))", "train: x float64 (4, 2) and y int64 (3,) found"),
        ("D(P(x, y * 1.0), P(x, y))", "train: x float64 (4, 2) and y float64 (4,) found"),
        ("D(P(x.astype(str), y), P(x, y))", "needed: numbers (n, ...) and whole numbers (n,)"),
        ("D(P(x, y), P(x[:, :1], y))", "test: x of shape (4, 1) found"),
        ("D(P(x[:, 0], y), P(x[:, 0], y))", "train: x of shape (4,) found"),
        ("D(P(x, y), P(x, y), 'image')", "needed: (n, C, H, W) for images"),
        ("D(P(x, y), P(x, y), 'graph')", "kind 'graph' found, allowed: image, tabular"),
        ("D(P(x, y + 1), P(x, y))", "train: labels 1 to 2 found, allowed: 0 to 1"),
        ("D(P(x, y), P(x, y - 1))", "test: labels -1 to 0 found, allowed: 0 to 1"),
        ("D(P(x, y, np.array(['a'])), P(x, y))", "train.client: 1 values for 4 rows"),
        ("Dataset('m', P(x, y), P(x, y), 2, ('a',), 'tabular')", "1 label names for 2 classes"),
    ],
)
def test_what_a_function_returns_is_looked_at(own: Any, made: str, says: str) -> None:
    head = "import numpy as np\nfrom rayfed.data import Dataset, Part as P\n"
    body = "def D(a, b, kind='tabular'): return Dataset('m', a, b, 2, ('a', 'b'), kind)\n"
    body += f"def make(seed):\n    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])\n    return {made}\n"
    text = refused(own(head + body))
    assert text.startswith("task.data: ") and says in text


def test_notes_of_a_function_are_kept(own: Any) -> None:
    body = "from rayfed.data import Dataset, Part\nimport numpy as np\ndef make(seed):\n    p = Part(np.eye(2, dtype='f4'), np.arange(2))\n"
    d = load(own(body + "    return Dataset('m', p, p, 2, ('a', 'b'), 'tabular', ['three rows were empty'])"))
    assert d.notes == ("three rows were empty",)


def test_lists_are_taken_as_arrays_or_refused_in_a_sentence(own: Any) -> None:
    head = "from rayfed.data import Dataset, Part\n"
    body = "def make(seed):\n    p = Part([[1, 2], [3, 4]], [0, 1])\n    return Dataset('m', p, p, 2, ('a', 'b'), 'tabular')"
    try:
        d = load(own(head + body))
    except ConfigError as e:
        assert "train" in str(e)
    else:
        assert d.train.x.tolist() == [[1, 2], [3, 4]] and d.train.x.dtype == np.float32


# -- the shelf of real sets --------------------------------------------------------------------------------------------


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
