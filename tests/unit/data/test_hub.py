"""Folders read through `datasets`: what stands in them is opened when a config is judged, and told by its true cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rayfed import data
from rayfed.config.schema import Named
from rayfed.errors import ConfigError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield


def check(where: Path, **options: Any) -> list[str]:
    return data.check(Named.model_validate({"name": f"hf:{where}", **options}))


def load(where: Path, **options: Any) -> data.Dataset:
    return data.load(Named.model_validate({"name": f"hf:{where}", **options}), 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


ROWS = "species,bill\nAdelie,39.1\nGentoo,46.1\nAdelie,38.2\nGentoo,47.0\n"
OF_ROWS: dict[str, Any] = {"label": "species", "features": ["bill"]}


def test_a_csv_file_is_read_where_it_is_one(folder: Path) -> None:
    (folder / "train.csv").write_text(ROWS)
    assert check(folder, **OF_ROWS) == [] and load(folder, **OF_ROWS).label_names == ("Adelie", "Gentoo")


def test_latin_1_is_told_with_file_and_byte(folder: Path) -> None:
    (folder / "train.csv").write_bytes(ROWS.replace("Adelie", "Adélie").encode("latin1"))
    (text,) = check(folder, **OF_ROWS)
    assert text == (
        f"task.data: {folder}/train.csv is not UTF-8 (UnicodeDecodeError: byte 0xe9 near byte 15); save it as UTF-8, e.g. iconv -f "
        "latin1 -t utf-8 where it is Latin-1"
    )


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_another_delimiter_is_told(folder: Path, mark: str) -> None:
    (folder / "train.csv").write_text(ROWS.replace(",", mark))
    (text,) = check(folder, **OF_ROWS)
    assert f"has one column, {'species' + mark + 'bill'!r}: its values are divided by {mark!r}, needed: a comma" in text


def test_a_config_is_judged_by_the_columns_of_a_local_folder(folder: Path) -> None:
    (folder / "train.csv").write_text(ROWS)
    (text,) = check(folder, label="specie", features=["bill"])
    assert text.startswith(
        f"task.data.label: hf:{folder}, split 'train' has no column 'specie' (did you mean 'species'?)"
    )
    (folder / "train.csv").write_text(ROWS.replace("species", "specie"))  # a file that changed is opened anew
    assert check(folder, label="specie", features=["bill"]) == []


def test_list_labels_are_told_as_such(folder: Path) -> None:
    datasets.Dataset.from_dict({"a": [1.0, 2.0], "label": [[0, 1], [1]]}).save_to_disk(folder / "s")
    (text,) = check(folder / "s", features=["a"])
    assert f"column 'label' of hf:{folder}/s, split 'train' holds lists" in text and "one label a row is needed" in text
    assert any("holds lists" in p for p in check(folder / "s"))  # whatever else is wrong


def test_labels_without_a_class_are_told(folder: Path) -> None:
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


def test_a_broken_picture_is_told_by_its_file(folder: Path) -> None:
    for n in range(4):
        where = folder / "train" / "ab"[n % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), n * 9, np.uint8)).save(where / f"{n}.png")
    d = load(folder)
    assert d.label_names == ("a", "b") and d.input_shape == (1, 4, 4)
    (folder / "train" / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ConfigError, match=f"task.data.image: {folder}/train/a/2.png cannot be read as a picture"):
        load(folder)


def test_a_damaged_set_is_told_by_its_folder(folder: Path) -> None:
    datasets.Dataset.from_dict({"a": [1.0, 2.0], "label": [0, 1]}).save_to_disk(folder / "s")
    (folder / "s" / "state.json").write_text("{")
    (text,) = check(folder / "s", features=["a"])
    assert text.startswith(f"task.data: hf:{folder}/s cannot be loaded: JSONDecodeError")
