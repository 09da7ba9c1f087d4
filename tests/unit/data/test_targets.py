"""Several labels a row, numbers to predict and further columns, from tables and from own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part
from rayfed.data.own import checked
from rayfed.errors import ConfigError

ROWS: dict[str, list[Any]] = {
    "a": [1.0, 2.0, 3.0, 4.0],
    "b": [0, 1, 0, 1],
    "sick": [1, 0, None, 1],
    "well": [0, 1, 1, 0],
    "tags": [["u"], [], ["v", "u"], ["w"]],
    "days": [3, 5, 2, 9],
    "cost": [1.5, None, 2.5, 0.0],
}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def make(rows: dict[str, list[Any]] = ROWS, test: bool = True, **options: Any) -> Dataset:
        for name in ("train", "test") if test else ("train",):
            pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
        return data.load(Named.model_validate({"name": f"parquet:{tmp_path}", "features": ["a", "b"], **options}), 0)

    return make


def test_labels_of_columns_with_a_mask(load: Any) -> None:
    d = load(labels=["sick", "well"])
    assert d.form == "labels" and d.label_names == ("sick", "well") and d.classes == 2
    assert d.train.y.tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert d.train.columns["mask"].tolist() == [[1, 1], [1, 1], [0, 1], [1, 1]]
    assert any("2 labels are not known" in n for n in d.notes)
    assert "mask" not in load(labels=["well", "b"]).train.columns


def test_labels_of_lists(load: Any) -> None:
    d = load(labels="tags")
    assert d.label_names == ("u", "v", "w") and d.train.y.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_numbers(load: Any) -> None:
    one, two = load(target="days"), load(target=["days", "a"])
    assert (
        one.form == two.form == "numbers" and one.train.y.tolist() == [3, 5, 2, 9] and one.train.y.dtype == np.float32
    )
    assert two.train.y.tolist() == [[3, 1], [5, 2], [2, 3], [9, 4]] and two.label_names == ("days", "a")


def test_further_columns(load: Any) -> None:
    d = load(target="days", columns={"site": "b", "money": "cost", "both": ["a", "cost"]})
    c = d.train.columns
    assert c["site"].tolist() == [0, 1, 0, 1] and c["site"].dtype == np.int64
    assert c["money"].tolist() == [1.5, 0, 2.5, 0] and c["money_mask"].tolist() == [1, 0, 1, 1]
    assert c["both"].tolist() == [[1, 1.5], [2, 0], [3, 2.5], [4, 0]] and c["both_mask"].tolist()[1] == [1, 0]
    assert "site_mask" not in c and c.keys() == d.test.columns.keys()
    assert d.train.take(np.array([3, 0])).columns["site"].tolist() == [1, 0]


def test_a_share_becomes_the_test_part_with_its_columns(load: Any) -> None:
    rows = {n: v * 10 for n, v in ROWS.items()}
    d = load(rows, False, target="days", columns={"site": "b"})
    assert len(d.test.y) == 8 and d.test.columns["site"].tolist() == [
        {3: 0, 5: 1, 2: 0, 9: 1}[int(v)] for v in d.test.y
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "days", "label": "b"}, "task.data.target: label and target are both set; choose one"),
        ({"target": ["days", "days"]}, "task.data.target: ['days', 'days'] found, allowed: the name of a column"),
        ({"target": "day"}, "task.data.target: {} has no column 'day' (did you mean 'days'?)"),
        ({"target": "tags"}, "task.data.target: column 'tags' of {} is list<"),
        ({"target": "cost"}, "task.data.target: 1 rows of {} have no value in column 'cost'"),
        ({"labels": ["days", "b"]}, "task.data.labels: column 'days' of {} holds 3 (row 0), allowed: 0, 1 or no value"),
        ({"labels": ["tags", "b"]}, "task.data.labels: column 'tags' of {} is list<"),
        ({"columns": "a"}, "task.data.columns: 'a' found, allowed: {{NAME: COLUMN"),
        ({"columns": {"x": "a"}}, "task.data.columns: 'x' is no name for a batch's column"),
        ({"columns": {"site": 3}}, "task.data.columns.site: 3 found"),
        ({"columns": {"site": "wards"}}, "task.data.columns.site: {} has no column 'wards'"),
        ({"columns": {"site": "tags"}}, "task.data.columns.site: column 'tags' of {} is list<"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(load: Any, tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{"label": "b", **options} if "columns" in options else options)
    assert says.format(tmp_path / "train.parquet") in str(caught.value)


def own(of: Any, classes: int = 2, names: tuple[str, ...] = ("u", "v"), **columns: Any) -> Dataset:
    part = Part(np.zeros((4, 3)), of, columns=columns)
    return Dataset("own", part, part, classes, names, "tabular")


def test_own_functions_may_return_them() -> None:
    d = checked(own([[0, 1], [1, 1], [0, 0], [1, 0]], mask=[[1, 0]] * 4, site=np.arange(4)))
    assert d.form == "labels" and d.train.columns["mask"].dtype == d.train.columns["site"].dtype == np.int64
    assert checked(own([0.5, 1.0, 2.0, 3.0], 1, ("t",), w2=np.ones((4, 2)))).train.columns["w2"].dtype == np.float32


@pytest.mark.parametrize(
    ("d", "says"),
    [
        (own([[0, 1], [1, 2], [0, 0], [1, 0]]), "train: y of row 1 is [1, 2], allowed: 0 or 1"),
        (own([0.5, np.nan, 2.0, 3.0], 1, ("t",)), "train: y of row 1 is nan, allowed: finite numbers"),
        (
            own([0.0, 1.0, 0.0, 1.0]),
            "train: y float64 (4,) and 2 classes found, needed: whole numbers (n,) for classes",
        ),
        (own([[0, 1]] * 4, 3, ("u", "v", "w")), "train: y int64 (4, 2) and 3 classes found"),
        (own([0, 1, 0, 1], y=np.ones(4)), "train.columns.y: a name found that no column can have"),
        (own([0, 1, 0, 1], site=np.ones(3)), "train.columns.site: float64 (3,) found, needed: numbers (4, ...)"),
        (own([0, 1, 0, 1], site=["a"] * 4), "train.columns.site: <U1 (4,) found, needed: numbers (4, ...)"),
        (own([0, 1, 0, 1], site=[np.nan] * 4), "train.columns.site: NaN or infinity found"),
    ],
)
def test_own_targets_and_columns_that_no_task_can_take(d: Dataset, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(d)
    assert says in str(caught.value)


def test_parts_must_agree() -> None:
    train, test = Part(np.zeros((4, 3)), [0, 1, 0, 1], columns={"a": np.ones(4)}), Part(np.zeros((2, 3)), [0.5, 1.0])
    with pytest.raises(ConfigError) as caught:
        checked(Dataset("own", train, test, 2, ("u", "v"), "tabular"))
    assert "test: y float64 (2,) found, that of train is int64 (4,)" in str(caught.value)
    test = Part(np.zeros((2, 3)), [0, 1], columns={"b": np.ones(2)})
    with pytest.raises(ConfigError, match=r"test\.columns: b found, train has: a"):
        checked(Dataset("own", train, test, 2, ("u", "v"), "tabular"))


@pytest.mark.parametrize("name", data.BUNDLED)
def test_tables_that_scikit_learn_brings(name: str) -> None:
    d = data.load(Named(name=f"sklearn:{name}"), 3)
    again = data.load(Named(name=f"sklearn:{name}"), 4)
    assert d.form == ("numbers" if name in ("diabetes", "linnerud") else "classes")
    assert np.array_equal(d.test.x, again.test.x) and 0.2 < len(d.test.y) / (len(d.test.y) + len(d.train.y)) < 0.3
    assert np.abs(d.train.x.mean(0)).max() < 1e-5 and len(d.label_names) == d.classes
    assert data.check(Named(name="sklearn:iri"))[0].startswith(
        "task.data: 'sklearn:iri' is unknown (did you mean 'sklearn:iris'?)"
    )


def test_constructed_labels() -> None:
    d = data.load(
        Named.model_validate({"name": "synthetic:multilabel", "examples": 4000, "test": 10, "labels": 4, "share": 0.2}),
        1,
    )
    assert (
        d.form == "labels"
        and d.train.y.shape == (4000, 4)
        and ((d.train.y.mean(0) > 0.08) & (d.train.y.mean(0) < 0.32)).all()
    )
    assert data.check(Named.model_validate({"name": "synthetic:multilabel", "share": 1.5})) == [
        "task.data.share: 1.5 found, allowed: below 1"
    ]
