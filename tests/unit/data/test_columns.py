"""Columns of tables as they are: labels that do not count from 0, types that differ, numbers and texts that cannot be held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfed import data
from rayfed.data import columns
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.partition import build
from tests.configs import refusal
from tests.unit.data import sets


def write(folder: Path, table: dict[str, Any] | pa.Table, name: str = "train") -> str:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), folder / f"{name}.parquet")
    return f"parquet:{folder}"


def load(name: str, **options: Any) -> data.Dataset:
    return sets.load(name, **{"features": ["a"], **options})


def refused(name: str, **options: Any) -> str:
    return refusal(load, name, **options)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([0, 500, 90000] * 4, ("0", "500", "90000")),
        ([1, 2, 3] * 4, ("1", "2", "3")),
        ([-1, 1] * 6, ("-1", "1")),
        (pa.array([2**63 + 1, 5] * 6, pa.uint64()), ("5", str(2**63 + 1))),
        ([2**53 + 1, 2**53] * 6, (str(2**53), str(2**53 + 1))),
    ],
)
def test_labels_that_do_not_count_from_0_are_classes_with_names(tmp_path: Path, given: Any, names: tuple[str]) -> None:
    values = [str(v) for v in (given.to_pylist() if isinstance(given, pa.Array) else given)]
    name = write(tmp_path, {"a": np.arange(12.0), "label": given, "row": list(map(str, range(12)))})
    d = load(name, client="row")
    assert (d.classes, d.label_names) == (len(names), names)
    for part in (d.train, d.test):
        assert part.client is not None and len(part.y)
        assert [d.label_names[y] for y in part.y] == [values[int(r)] for r in part.client]
    assert d.notes == (f"labels in column 'label' do not count from 0: {', '.join(names)} are {len(names)} classes",)


def test_labels_that_count_from_0_need_no_note(tmp_path: Path) -> None:
    d = load(write(tmp_path, {"a": np.arange(12.0), "label": [2, 0, 1] * 4}))
    assert d.label_names == ("0", "1", "2") and d.notes == ()
    d = load(write(tmp_path, {"a": np.arange(12.0), "label": [True, False] * 6}))
    assert d.label_names == ("0", "1") and d.notes == ()


def test_more_values_than_classes_can_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CLASSES", 11)
    name = write(tmp_path, {"a": np.arange(12.0), "label": np.arange(12) * 7})
    assert f"column 'label' of {tmp_path}/train.parquet holds 12 different values, allowed: at most 11" in refused(name)


def test_planted_groups_use_the_classes_there_are(tmp_path: Path) -> None:
    name = write(tmp_path, {"a": np.arange(120.0), "label": [0, 500, 90000] * 40})

    def federation(**groups: Any) -> Any:
        asked = {
            "task": {"data": {"name": name, "features": ["a"]}, "model": "linear"},
            "federation": {"clients": 6, "groups": {"kind": "classes", **groups}, "partition": {"kind": "iid"}},
            "method": "fedavg",
        }
        return build(load_request(asked))  # type: ignore[arg-type]

    made = federation(count=3)
    assert made.class_counts.shape == (6, 3) and (made.class_counts.sum(0) > 0).all()
    made = federation(count=2, sets=[[0, 500], [90000]])
    held = made.class_counts > 0
    assert held[made.group == 0].tolist() == [[True, True, False]] * 3
    assert held[made.group == 1].tolist() == [[False, False, True]] * 3
    with pytest.raises(ConfigError, match=r"federation\.groups\.sets: class 1 found, allowed: 0, 500, 90000"):
        federation(count=2, sets=[[0, 1], [500]])


@pytest.mark.parametrize("column", ["label", "client", "domain"])
def test_a_column_of_numbers_in_one_file_and_text_in_the_other(tmp_path: Path, column: str) -> None:
    rows = {"a": [1.0, 2.0], "label": [0, 1], "client": ["x", "y"], "domain": ["p", "q"]}
    name = write(tmp_path, {**rows, column: [0, 1]})
    write(tmp_path, {**rows, column: ["0", "1"]}, "test")
    assert refused(name) == (
        f"task.data.{column}: column {column!r} is int64 in {tmp_path}/train.parquet and string in {tmp_path}/test.parquet; "
        "allowed: the same in both files"
    )


def test_infinite_and_huge_features_are_refused_by_column(tmp_path: Path) -> None:
    name = write(tmp_path, {"a": [1.0, float("inf"), 2, float("-inf")], "label": [0, 1] * 2})
    text = refused(name)
    assert f"column 'a' of {tmp_path}/train.parquet is infinite in 2 rows (first: row 1)" in text
    write(tmp_path, {"a": [1e300, -1e300, 2, 3], "label": [0, 1] * 2})
    assert "column 'a' of" in refused(name) and "up to 1e+300 in size, too large" in refused(name)


def test_whole_numbers_beyond_what_float64_holds_are_no_features(tmp_path: Path) -> None:
    name = write(tmp_path, {"a": [1, 2**53 + 1, 3, 4], "label": [0, 1] * 2})
    assert f"column 'a' of {tmp_path}/train.parquet holds {2**53 + 1}; whole numbers beyond 2^53" in refused(name)
    write(tmp_path, {"a": [1, -(2**53), 3, 4], "label": [0, 1] * 2})
    assert load(name).input_shape == (1,)


def bad_text(values: list[bytes]) -> pa.Array:
    """Text that says it is UTF-8 and is not, as other writers leave it."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("column", ["label", "client", "text"])
def test_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path, column: str) -> None:
    rows = {"text": list("abcd"), "a": np.arange(4.0), "label": list("xyxy"), "client": list("pqpq")}
    name = write(tmp_path, {**rows, column: bad_text([b"abc", b"caf\xe9", b"x", b"y"])})
    text = refused(name, **({"features": None, "text": "text"} if column == "text" else {}))
    where = f"task.data.{column}: column {column!r} of {tmp_path}/train.parquet"
    assert text == f"{where} holds text that is not UTF-8 (row 1, byte 0xe9)"


def test_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1.0, 2]), pa.array([3.0, 4]), pa.array([0, 1])], names=["a", "a", "label"])
    name = write(tmp_path, table)
    assert f"task.data.features: {tmp_path}/train.parquet has 2 columns called 'a'; allowed: one" in refused(name)
    assert "allowed: each column once" in refused(name, features=["b", "b"])


def test_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    name = write(tmp_path, {"a": np.arange(1000.0), "label": np.arange(1000) % 2})
    whole = (tmp_path / "train.parquet").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"\0" * 40 + whole[40:], whole[:-8] + b"\xff\xff\xff\x7fPAR1"):
        (tmp_path / "train.parquet").write_bytes(broken)
        assert f"task.data: {tmp_path}/train.parquet" in refused(name)
    write(tmp_path, pa.table({"a": [1.0], "label": [0]}).replace_schema_metadata({"shelf": "{"}))
    assert "the metadata entry 'shelf' of" in refused(name) and "is not JSON" in refused(name)
    write(tmp_path, pa.table({"a": [1.0], "label": [0]}).replace_schema_metadata({"shelf": '{"height": "8"}'}))
    assert "the metadata entry 'shelf' of" in refused(name)


def test_an_error_that_nobody_foresaw_is_a_sentence_with_its_cause(tmp_path: Path, monkeypatch: Any) -> None:
    name = write(tmp_path, {"a": [1.0, 2], "label": [0, 1]})
    monkeypatch.setattr(columns, "features", lambda *a: 1 / 0)
    with pytest.raises(ConfigError, match=f"task.data: {name} cannot be read: ZeroDivisionError") as e:
        load(name)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
