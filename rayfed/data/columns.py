"""Columns of an Arrow table as arrays: labels, features, texts and names. Sentences name what they refuse by file and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

EXACT = 2**53  # a float64 holds every whole number up to here
CLASSES = 100_000  # more different labels than this are no classes
VALUES = 1_000  # more different values than this are no categories


def fraction_problems(value: Any) -> list[str]:
    """Return what is wrong with option `test` as a share of the training rows."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        return [f"task.data.test: {value!r} found, allowed: a share of the training rows, e.g. 0.2"]
    return []


def kind_of(of: pa.DataType) -> str:
    """Return what values of a type are: whole numbers | numbers | text | lists | nothing, or the type's own name."""
    import pyarrow as pa

    if pa.types.is_dictionary(of):
        return kind_of(of.value_type)
    if pa.types.is_integer(of) or pa.types.is_boolean(of):
        return "whole numbers"
    if pa.types.is_floating(of):
        return "numbers"
    if str(of) in ("string", "large_string", "string_view"):
        return "text"
    if pa.types.is_nested(of) and not pa.types.is_struct(of) and not pa.types.is_map(of):
        return "lists"
    return "nothing" if pa.types.is_null(of) else str(of)


def same_kind(columns: Sequence[pa.ChunkedArray], name: str, files: Sequence[str], setting: str) -> None:
    """Refuse a column that holds numbers in one file and text in the other: its values would never be equal."""
    found = [(c.type, f) for c, f in zip(columns, files, strict=True) if len(c) and kind_of(c.type) != "nothing"]
    if len({kind_of(t) for t, _ in found}) > 1:
        (a, in_a), (b, in_b) = found
        raise ConfigError(
            f"task.data.{setting}: column {name!r} is {a} in {in_a} and {b} in {in_b}; allowed: the same in both files"
        )


def plain(column: pa.ChunkedArray, name: str, file: str, setting: str) -> pa.ChunkedArray:
    """Return a column without dictionary, its memory checked. ConfigError where it is damaged, or text is not UTF-8."""
    import pyarrow as pa

    where = f"task.data.{setting}: column {name!r} of {file}"
    try:
        column.validate(full=True)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column
    except (pa.ArrowException, UnicodeDecodeError) as e:
        if "UTF8" in str(e).upper().replace("-", ""):
            raise ConfigError(f"{where} holds text that is not UTF-8{_undecodable(column)}") from None
        raise ConfigError(f"{where} is damaged: {e}") from None


def _undecodable(column: pa.ChunkedArray) -> str:
    """Return where the first such text is, in words."""
    import pyarrow as pa

    if kind_of(column.type) != "text" or pa.types.is_dictionary(column.type):
        return ""
    for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError as e:
            return f" (row {row}, byte {e.object[e.start]:#04x})"
    return ""


def texts(column: pa.ChunkedArray, name: str, file: str, setting: str) -> np.ndarray:
    """Return (n,) texts as objects, None where missing."""
    return np.array([*plain(column, name, file, setting).to_pylist(), None], object)[:-1]


def names(column: pa.ChunkedArray, name: str, file: str, setting: str) -> np.ndarray:
    """Return (n,) names as text, of text or of numbers; empty where missing."""
    return np.array(["" if v is None else str(v) for v in texts(column, name, file, setting)], dtype=str)


def labels(
    columns: Sequence[pa.ChunkedArray], name: str, files: Sequence[str], label_names: Sequence[str] = ()
) -> tuple[list[np.ndarray], tuple[str, ...], list[str]]:
    """Return ([y (n,) int64 per file], name of each class, notes).

    Of whole numbers the different values are the classes, in their order and with their names; of texts the sorted ones.
    label_names: the classes where the data itself names them; whole numbers count them then. ConfigError for missing labels,
    for lists, fractions and other types, for two types in two files, and for more than `CLASSES` values.
    """
    import pyarrow as pa

    same_kind(columns, name, files, "label")
    columns = [plain(c, name, f, "label") for c, f in zip(columns, files, strict=True)]
    for c, f in zip(columns, files, strict=True):
        if c.null_count:
            raise ConfigError(f"task.data.label: {c.null_count} rows of {f} have no value in column {name!r}")
        if problem := label_problem(c.type, name, f):
            raise ConfigError(problem)
    if any(len(c) and kind_of(c.type) == "text" for c in columns):
        return _text_labels([np.array([*c.to_pylist(), None], object)[:-1] for c in columns], name, files, label_names)
    if any(pa.types.is_uint64(c.type) for c in columns):  # together with int64 NumPy would make floats of them
        arrays = [np.array([*c.to_pylist(), None], object)[:-1] for c in columns]
    else:
        arrays = [np.asarray(c.cast("int64").to_numpy(), np.int64) for c in columns]
    return _number_labels(arrays, name, files, label_names)


def label_problem(of: pa.DataType, name: str, file: str) -> str | None:
    """Return why a column of this type cannot be a label."""
    if kind_of(of) == "lists":
        return (
            f"task.data.label: column {name!r} of {file} holds lists ({of}), one label a row is needed; "
            "several labels a row are read by labels: COLUMN"
        )
    if kind_of(of) not in ("whole numbers", "text", "nothing"):
        return f"task.data.label: column {name!r} of {file} is {of}, allowed: whole numbers or text"
    return None


def _text_labels(
    arrays: list[np.ndarray], name: str, files: Sequence[str], label_names: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...], list[str]]:
    found = tuple(label_names) or tuple(sorted({v for a in arrays for v in a}))
    number = {n: i for i, n in enumerate(found)}
    for a, f in zip(arrays, files, strict=True):
        if unknown := sorted({*a} - number.keys()):
            raise ConfigError(
                f"task.data.label: column {name!r} of {f} holds {unknown[0]!r}, its label names are {_listed(found)}"
            )
    limit(len(found), name, files)
    return [np.array([number[v] for v in a], np.int64) for a in arrays], found, []


def _number_labels(
    arrays: list[np.ndarray], name: str, files: Sequence[str], label_names: Sequence[str]
) -> tuple[list[np.ndarray], tuple[str, ...], list[str]]:
    for a, f in zip(arrays, files, strict=True):
        if len(a) and (a == -1).all():
            raise ConfigError(
                f"task.data.test: every label of {f} is -1 (its labels are not published); use another split (test: NAME) or a "
                "share of train (test: 0.2)"
            )
        if label_names and len(a) and a.min() < 0:
            raise ConfigError(
                f"task.data.label: {int((a < 0).sum())} rows of {f} have label {a.min()} in column {name!r}, which stands for none; "
                f"allowed: 0 to {len(label_names) - 1}"
            )
        if label_names and len(a) and a.max() >= len(label_names):
            raise ConfigError(
                f"task.data.label: column {name!r} of {f} holds class {a.max()}, but {len(label_names)} label names are given"
            )
    if label_names:
        return [a.astype(np.int64) for a in arrays], tuple(label_names), []
    values = np.unique(np.concatenate(arrays))
    limit(len(values), name, files)
    found = tuple(str(v) for v in values)
    y = [np.searchsorted(values, a).astype(np.int64) for a in arrays]
    if found == tuple(map(str, range(len(found)))):
        return y, found, []
    return y, found, [f"labels in column {name!r} do not count from 0: {_listed(found)} are {len(found)} classes"]


def limit(classes: int, name: str, files: Sequence[str]) -> None:
    if classes > CLASSES:
        raise ConfigError(
            f"task.data.label: column {name!r} of {files[0]} holds {classes:,} different values, allowed: at most {CLASSES:,} classes"
        )


def _listed(values: Sequence[str]) -> str:
    """Return at most ten values in words."""
    return ", ".join(values) if len(values) <= 10 else f"{', '.join(values[:9])}, ... {values[-1]}"


def features(table: pa.Table, columns: Sequence[str], file: str, setting: str = "features") -> np.ndarray:
    """Return (n, f) float64, NaN where missing. ConfigError for infinite values, and whole numbers that float64 cannot hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    out = np.empty((table.num_rows, len(columns)))
    for i, name in enumerate(columns):
        column, where = plain(table[name], name, file, setting), f"task.data.{setting}: column {name!r} of {file}"
        if pa.types.is_integer(column.type) and len(column) > column.null_count:
            ends = [int(v.as_py()) for v in pc.min_max(column).values()]
            if max(map(abs, ends)) > EXACT:
                raise ConfigError(
                    f"{where} holds {max(ends, key=abs)}; whole numbers beyond 2^53 would be rounded to others (is it an id?)"
                )
            column = column.cast("int64")
        out[:, i] = column.cast("float64").to_numpy()
        if np.isinf(out[:, i]).any():
            rows = np.flatnonzero(np.isinf(out[:, i]))
            raise ConfigError(
                f"{where} is infinite in {len(rows)} rows (first: row {rows[0]}); allowed: finite numbers, or missing ones"
            )
    return out


def one_hot(columns: Sequence[pa.ChunkedArray], name: str, files: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
    """Return ([(n, values) float64 per file], notes): 1 where a row has the value, of the different ones of the first file, sorted.

    A row without a value, or with one that the first file does not have, is all 0. ConfigError for more than `VALUES` values.
    """
    read = [texts(c, name, f, "one_hot") for c, f in zip(columns, files, strict=True)]
    values = sorted({v for v in read[0] if v is not None})
    if len(values) > VALUES:
        raise ConfigError(
            f"task.data.one_hot: column {name!r} of {files[0]} holds {len(values):,} values, allowed: at most {VALUES:,} (is it an id?)"
        )
    number = {v: i for i, v in enumerate(values)}
    made, unknown = [], 0
    for part in read:
        at = np.array([number.get(v, -1) for v in part], np.int64)
        x = np.zeros((len(part), len(values)))
        x[np.flatnonzero(at >= 0), at[at >= 0]] = 1
        unknown += int((at < 0).sum())
        made.append(x)
    notes = [f"column {name!r} became {len(values)} numbers, one for each value: {_listed(list(map(str, values)))}"]
    return made, notes + (
        [f"{unknown:,} rows have no value in column {name!r} that {files[0]} knows: 0 in all"] if unknown else []
    )


def standardised(
    train: np.ndarray, test: np.ndarray, columns: Sequence[str], file: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return feature columns (n, f) with mean 0 and deviation 1 over the training rows, as float32.

    A missing measurement (NaN) says nothing and becomes the training rows' mean. ConfigError for values so large that mean,
    deviation or the result cannot be held.
    """
    known = ~np.isnan(train)
    count = np.maximum(known.sum(0), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(known, train, 0).sum(0) / count
        sd = np.sqrt((np.where(known, train - mean, 0) ** 2).sum(0) / count)
        scale = np.where(sd > 1e-9 * (1 + np.abs(mean)), sd, 1.0)  # a constant column carries nothing and stays 0
        a, b = (np.where(np.isnan(x), 0.0, (x - mean) / scale).astype(np.float32) for x in (train, test))
    held = np.isfinite(mean) & np.isfinite(sd) & np.isfinite(a).all(0) & np.isfinite(b).all(0)
    if not held.all():
        i = int(np.argmin(held))
        largest = max(float(np.nanmax(np.abs(x[:, i]), initial=0)) for x in (train, test))
        raise ConfigError(
            f"task.data.features: column {columns[i]!r} of {file} holds numbers up to {largest:.3g} in size, too large to be "
            "standardised"
        )
    return a, b
