"""Folders read through `datasets`: their content is read when a config is judged, and errors name the true cause."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rayfed import data
from rayfed.errors import ConfigError
from tests.unit.data import sets

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield


def check(where: Path, **options: Any) -> list[str]:
    return sets.check(f"hf:{where}", **options)


def load(where: Path, **options: Any) -> data.Dataset:
    return sets.load(f"hf:{where}", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


ROWS = "species,bill\nAdelie,39.1\nGentoo,46.1\nAdelie,38.2\nGentoo,47.0\n"
OF_ROWS: dict[str, Any] = {"label": "species", "features": ["bill"]}


def test_a_csv_file_is_read_where_it_is_one(folder: Path) -> None:
    (folder / "train.csv").write_text(ROWS)
    assert check(folder, **OF_ROWS) == [] and load(folder, **OF_ROWS).label_names == ("Adelie", "Gentoo")


def test_latin_1_is_refused_with_file_and_byte(folder: Path) -> None:
    (folder / "train.csv").write_bytes(ROWS.replace("Adelie", "Adélie").encode("latin1"))
    (text,) = check(folder, **OF_ROWS)
    assert text == (
        f"task.data: {folder}/train.csv is not UTF-8 (UnicodeDecodeError: byte 0xe9 near byte 15); save it as UTF-8, e.g. iconv -f "
        "latin1 -t utf-8 where it is Latin-1"
    )


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_named(folder: Path, mark: str) -> None:
    (folder / "train.csv").write_text(ROWS.replace(",", mark))
    (text,) = check(folder, **OF_ROWS)
    assert (
        f"has one column, {'species' + mark + 'bill'!r}: its values are divided by {mark!r}, needed: a comma, or delimiter: {mark!r}"
        in text
    )


def test_a_config_is_judged_by_the_columns_of_a_local_folder(folder: Path) -> None:
    (folder / "train.csv").write_text(ROWS)
    (text,) = check(folder, label="specie", features=["bill"])
    assert text.startswith(
        f"task.data.label: hf:{folder}, split 'train' has no column 'specie' (did you mean 'species'?)"
    )
    (folder / "train.csv").write_text(ROWS.replace("species", "specie"))  # a file that changed is opened again
    assert check(folder, label="specie", features=["bill"]) == []


def test_list_labels_are_refused_as_such(folder: Path) -> None:
    datasets.Dataset.from_dict({"a": [1.0, 2.0], "label": [[0, 1], [1]]}).save_to_disk(folder / "s")
    (text,) = check(folder / "s", features=["a"])
    assert f"column 'label' of hf:{folder}/s, split 'train' holds lists" in text and "one label a row is needed" in text
    assert any("holds lists" in p for p in check(folder / "s"))  # whatever else is wrong


def test_labels_without_a_class_are_refused(folder: Path) -> None:
    of = datasets.Features({"a": datasets.Value("float64"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"a": [1.0, 2, 3], "label": [0, -1, 1]}, features=of).save_to_disk(folder / "s")
    with pytest.raises(ConfigError, match=r"1 rows of .* have label -1 in column 'label', which stands for none"):
        load(folder / "s", features=["a"])


def test_arrays_of_a_declared_type_stay_as_they_are(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(8, 4, 4)).astype(np.float32)
    of = datasets.Features({"image": datasets.Array2D((4, 4), "float32"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": list(x), "label": [0, 1] * 4}, features=of).save_to_disk(folder / "s")
    d = load(folder / "s")
    got = np.concatenate([d.train.x, d.test.x])[:, 0]
    assert sorted(got[:, 0, 0].tolist()) == sorted(x[:, 0, 0].tolist())
    assert "are float32 from -" in d.notes[0]


def test_a_broken_picture_is_refused_by_its_file(folder: Path) -> None:
    for n in range(4):
        where = folder / "train" / "ab"[n % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), n * 9, np.uint8)).save(where / f"{n}.png")
    d = load(folder)
    assert d.label_names == ("a", "b") and d.input_shape == (1, 4, 4)
    (folder / "train" / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ConfigError, match=f"task.data.image: {folder}/train/a/2.png cannot be read as a picture"):
        load(folder)


def test_a_damaged_set_is_refused_by_its_folder(folder: Path) -> None:
    datasets.Dataset.from_dict({"a": [1.0, 2.0], "label": [0, 1]}).save_to_disk(folder / "s")
    (folder / "s" / "state.json").write_text("{")
    (text,) = check(folder / "s", features=["a"])
    assert text.startswith(f"task.data: hf:{folder}/s cannot be loaded: JSONDecodeError")


# -- saved with `save_to_disk` ---------------------------------------------------------------------------------------------


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
    a, b = sets.pictures(4, 4, 6, channels), sets.pictures(2, 4, 6, channels, seed=1)
    where = tmp_path / "set"
    hub.DatasetDict({
        "train": image_set(hub, a, [0, 1, 1, 0], ["cat", "dog"], who=["x", "y", "x", None]),
        "test": image_set(hub, b, [1, 0], ["cat", "dog"], who=["x", "z"]),
    }).save_to_disk(where)  # fmt: skip
    assert sets.check(f"hf:{where}") == []
    d = sets.load(f"hf:{where}", client="who")
    assert (d.kind, d.label_names, d.classes, d.input_shape) == ("image", ("cat", "dog"), 2, (channels, 4, 6))
    assert np.array_equal(d.train.x, a.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert np.array_equal(d.test.x, b.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert d.train.y.tolist() == [0, 1, 1, 0] and d.test.y.tolist() == [1, 0]
    assert d.train.client.tolist() == ["x", "y", "x", ""] and d.test.client.tolist() == ["x", "z"]


def test_saved_texts_and_instructions(hub: Any, tmp_path: Path) -> None:
    features = hub.Features({"text": hub.Value("string"), "label": hub.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"t{i}" for i in range(20)], "label": [0, 1] * 10}
    hub.DatasetDict({"train": hub.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "texts")
    assert sets.check(f"hf:{tmp_path / 'texts'}", length=8) == []
    d = sets.load(f"hf:{tmp_path / 'texts'}", length=8, test=0.5)
    assert (d.kind, d.label_names, len(d.train.x), len(d.test.x)) == ("text", ("no", "yes"), 10, 10)
    assert {*d.train.x, *d.test.x} == set(rows["text"])
    assert all(d.label_names[y] == ("yes" if int(t[1:]) % 2 else "no") for t, y in zip(d.train.x, d.train.y))
    records = {"instruction": ["add"] * 6, "context": ["1 2"] * 6, "response": ["3"] * 6, "category": ["sum", "qa"] * 3}
    hub.Dataset.from_dict(records).save_to_disk(tmp_path / "records")
    d = sets.load(f"hf:{tmp_path / 'records'}", client="category")
    assert (d.kind, d.label_names) == ("instruct", ("qa", "sum"))
    assert d.train.x[0].tolist() == ["add", "1 2", "3"] and set(d.train.client) == {"sum", "qa"}
    assert "has no column 'txt' (did you mean 'text'?)" in sets.refused(f"hf:{tmp_path / 'texts'}", text="txt")


def test_a_saved_table_of_numbers_without_a_test_split(hub: Any, tmp_path: Path) -> None:
    where, y = tmp_path / "set", np.repeat([0, 1], [30, 10])
    a = np.arange(40.0)
    hub.Dataset.from_dict({"a": a, "b": a[::-1] * 2, "kind": y}).save_to_disk(where)
    d = sets.load(f"hf:{where}", label="kind", features=["a", "b"])
    assert (d.kind, d.input_shape, d.label_names) == ("tabular", (2,), ("0", "1"))
    assert np.bincount(d.train.y).tolist() == [24, 8] and np.bincount(d.test.y).tolist() == [6, 2]
    assert d.train.x.mean(0) == pytest.approx([0, 0], abs=1e-6) and d.train.x.std(0) == pytest.approx([1, 1], rel=1e-5)
    every = np.concatenate([d.train.x, d.test.x])[:, 0]
    assert np.diff(np.sort(every)) == pytest.approx(np.full(39, np.diff(np.sort(every))[0]), rel=1e-4)  # each row once
    again = sets.load(f"hf:{where}", 5, label="kind", features=["a", "b"])
    assert sets.same(d.train, again.train) and sets.same(d.test, again.test)
    half = sets.load(f"hf:{where}", label="kind", features=["a", "b"], test=0.5)
    assert np.bincount(half.test.y).tolist() == [15, 5]


def test_splits_can_have_other_names(hub: Any, tmp_path: Path) -> None:
    def table(values: list[float], y: list[str]) -> Any:
        return hub.Dataset.from_dict({"a": values, "label": y})

    splits = {"fit": table([1.0, 3.0], ["b", "a"]), "validation": table([5.0], ["a"]), "test": table([9.0], ["b"])}
    hub.DatasetDict(splits).save_to_disk(tmp_path / "set")
    name = f"hf:{tmp_path / 'set'}"
    d = sets.load(name, train="fit", test="validation", features=["a"])
    assert d.train.x.tolist() == [[-1], [1]] and d.test.x.tolist() == [[3]]
    assert d.label_names == ("a", "b") and d.train.y.tolist() == [1, 0] and d.test.y.tolist() == [0]
    assert sets.load(name, train="fit", features=["a"]).test.x.tolist() == [[7]]
    assert "has no split 'train'; splits: fit, validation, test (train: NAME)" in sets.refused(name, features=["a"])
    text = sets.refused(name, train="fit", test="valid", features=["a"])
    assert "has no split 'valid' (did you mean 'validation'?)" in text


def test_numbers_in_0_to_1_are_pictures_already(hub: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 3, 2)).astype(np.float32)
    hub.Dataset.from_dict({"image": x.tolist(), "label": [0, 1, 0, 1]}).save_to_disk(tmp_path / "set")
    d = sets.load(f"hf:{tmp_path / 'set'}", test=0.5)
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
    text = sets.refused(f"hf:{tmp_path / 'set'}", **options)
    assert says in text
    if options.get("label") != "u":  # whose rows have to be read
        assert sets.check(f"hf:{tmp_path / 'set'}", **options) == text.split("\n")


def test_pictures_of_several_sizes_are_refused(hub: Any, tmp_path: Path) -> None:
    from PIL import Image

    shown = [Image.fromarray(np.zeros(s, np.uint8)) for s in ((4, 4), (4, 5))]
    features = hub.Features({"image": hub.Image(), "label": hub.Value("int64")})
    hub.Dataset.from_dict({"image": shown, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "set")
    assert "must have one size; found 2: 4x4, 4x5" in sets.refused(f"hf:{tmp_path / 'set'}")


def test_an_absent_or_empty_folder_is_seen_before_anything_is_asked(tmp_path: Path) -> None:
    assert sets.check(f"hf:{tmp_path}/gone") == [
        f"task.data: '{tmp_path}/gone' does not exist, neither a folder nor a file"
    ]
    assert sets.check("hf:./gone") == ["task.data: './gone' does not exist, neither a folder nor a file"]
    assert sets.check(f"hf:{tmp_path}") == [f"task.data: folder '{tmp_path}' is empty"]
    assert sets.check("hf:owner/name") == []


@pytest.mark.parametrize("form", ["save_to_disk", "stream", "file"])
def test_an_arrow_file_with_values_beyond_its_end_is_refused_before_it_is_used(folder: Path, form: str) -> None:
    """Also in a column that nothing reads: libraries copy it, and the process would end there."""
    table = pa.table(
        {"label": [0, 1] * 12, "a": [float(i) for i in range(24)], "note": [f"note-{i % 9}" for i in range(24)]}
    )
    if form == "save_to_disk":
        datasets.DatasetDict({"train": datasets.Dataset(table)}).save_to_disk(folder)
    else:
        write = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
        with pa.OSFile(str(folder / "train.arrow"), "wb") as sink, write(sink, table.schema) as writer:
            writer.write_table(table)
    assert load(folder, features=["a"]).train.x.shape[1] == 1
    (file,) = folder.rglob("*.arrow")
    offsets = struct.pack("<25i", *range(0, 150, 6))
    harmed = bytearray(offsets)
    harmed[48:56] = struct.pack("<2i", 2**31 - 10, 2**31 - 4)
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, harmed))
    (problem,) = check(folder, features=["a"])
    assert problem.startswith(f"task.data: {file} is damaged: ") and "2147483638" in problem
    file.write_bytes(b"")
    assert check(folder, features=["a"])[0].startswith(f"task.data: {file} is damaged: ")


# -- single files ------------------------------------------------------------------------------------------------------

MANY = "species,bill\n" + "".join(f"{'Adelie' if i % 2 else 'Gentoo'},{30 + i}.5\n" for i in range(20))


def write_as(file: Path) -> Path:
    """Write the same rows in the format of the file's ending."""
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pyarrow.csv.read_csv(pa.BufferReader(MANY.encode()))
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".arrow":
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif file.suffix in (".json", ".jsonl"):
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        file.write_text(MANY.replace(",", "\t" if file.suffix == ".tsv" else ","))
    return file


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"])
def test_a_single_file_is_read_whatever_its_format(tmp_path: Path, ending: str) -> None:
    file = write_as(tmp_path / f"birds{ending}")
    assert check(file, **OF_ROWS) == []
    found = load(file, **OF_ROWS)
    assert (len(found.train.y), len(found.test.y), found.label_names) == (16, 4, ("Adelie", "Gentoo"))


@pytest.mark.parametrize("where", ["file", "folder"])
def test_delimiters_and_decimal_commas(folder: Path, where: str) -> None:
    (folder / "train.csv").write_text(MANY.replace(",", ";").replace(".", ","))
    place = folder if where == "folder" else folder / "train.csv"
    asked: dict[str, Any] = {**OF_ROWS, "delimiter": ";", "decimal": ","}
    assert check(place, **asked) == []
    plain = folder.parent / "plain.csv"
    plain.write_text(MANY)
    assert np.array_equal(load(place, **asked).train.x, load(plain, **OF_ROWS).train.x)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("a.xlsx", {}, "is no file that hf: reads; allowed: .csv, .tsv, .json, .jsonl, .parquet, .arrow, or a folder"),
        ("a.json", {"delimiter": ";"}, "task.data.delimiter: ';' found, which belongs to CSV files"),
        ("a.csv", {"delimiter": ";;"}, "task.data.delimiter: ';;' found, allowed: one character"),
        ("a.csv", {"decimal": "'"}, "task.data.decimal: \"'\" found, allowed: '.', ','"),
        ("a.csv", {"decimal": ","}, "allowed with another delimiter than the comma"),
    ],
)
def test_what_cannot_be_read_as_asked(tmp_path: Path, name: str, options: Any, says: str) -> None:
    (tmp_path / name).write_text(MANY)
    (text,) = check(tmp_path / name, **OF_ROWS, **options)
    assert says in text


def test_a_hub_set_has_no_delimiter() -> None:
    (text,) = sets.check("hf:nobody/nothing", delimiter=";")
    assert text.startswith("task.data.delimiter: ';' found, allowed for CSV files on this machine")
