"""Which column of a table is what: features by type, and columns that become one number for each value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.sets import check, load, refused

ROWS = "age,sex,weight,site,label\n" + "\n".join(
    f"{20 + i},{('f', 'm')[i % 2]},{50 + i % 7},{('a', 'b', 'c')[i % 3]},{i % 2}" for i in range(60)
)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "people.csv").write_text(ROWS + "\n")
    return tmp_path / "people.csv"


def test_features_are_all_columns_of_numbers(csv: Path) -> None:
    plain, named = load(f"hf:{csv}"), load(f"hf:{csv}", features=["age", "weight"])
    assert np.array_equal(plain.train.x, named.train.x) and plain.train.x.shape == (48, 2)
    assert any("are all its columns of numbers: age, weight" in n for n in plain.notes) and not named.notes
    without = load(f"hf:{csv}", target="age", client="site")
    assert without.train.x.shape[1] == 2 and any("numbers: weight, label" in n for n in without.notes)


def test_a_column_that_may_be_the_rows_themselves_is_asked_for(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"scan": [b"x"] * 4, "age": [1, 2, 3, 4], "label": [0, 1, 0, 1]}), tmp_path / "train.parquet"
    )
    assert "has no column 'image'" in refused(f"parquet:{tmp_path}")


def test_one_number_for_each_value(csv: Path) -> None:
    d = load(f"hf:{csv}", one_hot=["sex", "site"])
    x = np.concatenate([d.train.x, d.test.x])
    assert x.shape == (60, 2 + 2 + 3) and x.dtype == np.float32
    assert np.array_equal(x[:, 2:4].sum(1), np.ones(60)) and np.array_equal(x[:, 4:].sum(1), np.ones(60))
    assert {*np.unique(x[:, 2:])} == {0, 1} and abs(d.train.x[:, 0].mean()) < 1e-5
    alone = load(f"hf:{csv}", features=["age"], one_hot=["sex"])
    assert alone.train.x.shape[1] == 3
    assert any("column 'sex' became 2 numbers, one for each value: f, m" in n for n in alone.notes)


def test_values_that_the_first_file_does_not_have(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"c": ["x", "y", None, "x"], "label": [0, 1, 0, 1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"c": ["z", "y"], "label": [0, 1]}), tmp_path / "test.parquet")
    d = load(f"parquet:{tmp_path}", one_hot=["c"])
    assert d.train.x.tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]] and d.test.x.tolist() == [[0, 0], [0, 1]]
    assert any("2 rows have no value in column 'c' that" in n for n in d.notes)


def test_what_cannot_be(csv: Path) -> None:
    assert "task.data.one_hot: 'sex' found, allowed: a list" in check(f"hf:{csv}", one_hot="sex")[0]
    assert "has no column 'sexx' (did you mean 'sex'?)" in check(f"hf:{csv}", one_hot=["sexx"])[0]
    assert "'age' is among features too" in check(f"hf:{csv}", one_hot=["age"], features=["age"])[0]
    assert "text is set too" in check(f"hf:{csv}", one_hot=["sex"], text="site")[0]
    many = "\n".join(f"v{i},{i % 2}" for i in range(1001))
    (csv.parent / "ids.csv").write_text(f"id,label\n{many}\n")
    assert "holds 1,001 values, allowed: at most 1,000 (is it an id?)" in refused(
        f"hf:{csv.parent / 'ids.csv'}", one_hot=["id"]
    )
