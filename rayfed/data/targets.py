"""Columns of Arrow tables that are no single label: numbers to predict, several labels a row, and further columns of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.data import RESERVED, columns
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

OPTIONS = ("target", "labels", "columns")


class Read(NamedTuple):
    """What y is of each file, the names of what it holds, notes, and further columns of each file."""

    ys: list[np.ndarray]
    names: tuple[str, ...]
    notes: list[str]
    columns: list[dict[str, np.ndarray]]


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with these options, as they are written."""
    found = [n for n in ("label", "labels", "target") if n in options]
    out = [f"task.data.{found[-1]}: {' and '.join(found)} are both set; choose one"] if len(found) > 1 else []
    for n in ("target", "labels"):
        if n in options and not names_of(options[n]):
            out.append(f"task.data.{n}: {options[n]!r} found, allowed: the name of a column, or a list of such")
    further = options.get("columns", {})
    if not isinstance(further, Mapping):
        return [*out, f"task.data.columns: {further!r} found, allowed: {{NAME: COLUMN, NAME: [COLUMN, COLUMN]}}"]
    for name, of in further.items():
        if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
            out.append(
                f"task.data.columns: {name!r} is no name for a batch's column; allowed: letters, digits and _, not {', '.join(RESERVED)}"
            )
        elif not names_of(of):
            out.append(f"task.data.columns.{name}: {of!r} found, allowed: the name of a column, or a list of such")
    return out


def names_of(value: Any) -> tuple[str, ...]:
    """Return the columns that an option names, one or a list of different ones; () of anything else."""
    given = [value] if isinstance(value, str) else value
    right = isinstance(given, list) and all(isinstance(v, str) for v in given) and len(set(given)) == len(given)
    return tuple(given) if right else ()


def type_problem(option: str, field: pa.Field, alone: bool, file: str) -> str | None:
    """Return why a column of this type is not what it is named for. alone: whether it is the option's only one."""
    kind, where = columns.kind_of(field.type), f"task.data.{option}: column {field.name!r} of {file} is {field.type}"
    if option == "labels" and alone and kind == "lists":
        return None
    if kind in ("whole numbers", "numbers", "nothing"):
        return None
    return f"{where}, allowed: numbers" + (", or one column of lists" if option == "labels" else "")


def numbers(tables: Sequence[tuple[pa.Table, str]], names: Sequence[str]) -> Read:
    """Read numbers to predict: y (n,) of one column, (n, T) of several, float32. ConfigError where a row has none."""
    ys = []
    for table, file in tables:
        found = columns.features(table, names, file, "target")
        if np.isnan(found).any():
            at = names[int(np.isnan(found).any(0).argmax())]
            raise ConfigError(
                f"task.data.target: {int(np.isnan(found).any(1).sum())} rows of {file} have no value in column {at!r}"
            )
        ys.append(found.astype(np.float32)[:, 0] if len(names) == 1 else found.astype(np.float32))
    return Read(ys, tuple(names), [], [{} for _ in tables])


def labels(tables: Sequence[tuple[pa.Table, str]], names: Sequence[str]) -> Read:
    """Read several labels a row, y (n, L) of 0 or 1: a column of 0 and 1 for each, column `mask` being 0 where a value is missing; or one
    column of lists, whose different values are the labels."""
    if len(names) == 1 and columns.kind_of(tables[0][0][names[0]].type) == "lists":
        return _lists(tables, names[0])
    read = [columns.features(table, names, file, "labels") for table, file in tables]
    for values, (_, file) in zip(read, tables, strict=True):
        wrong = ~(np.isnan(values) | (values == 0) | (values == 1))
        if wrong.any():
            row, k = (int(i[0]) for i in np.nonzero(wrong))
            raise ConfigError(
                f"task.data.labels: column {names[k]!r} of {file} holds {values[row, k]:g} (row {row}), allowed: 0, 1 or no value"
            )
    masks = [(~np.isnan(values)).astype(np.float32) for values in read]
    missing = sum(int((m == 0).sum()) for m in masks)
    notes = [f"{missing:,} labels are not known and have no part in loss and metrics"] if missing else []
    further = [{"mask": m} if missing else {} for m in masks]
    return Read([np.nan_to_num(values).astype(np.int64) for values in read], tuple(names), notes, further)


def _lists(tables: Sequence[tuple[pa.Table, str]], name: str) -> Read:
    rows = []
    for table, file in tables:
        column = columns.plain(table[name], name, file, "labels")
        if column.null_count:
            raise ConfigError(
                f"task.data.labels: {column.null_count} rows of {file} have no value in column {name!r}; a row without labels has []"
            )
        rows.append(column.to_pylist())
    values = sorted({v for part in rows for row in part for v in row}, key=lambda v: (str(type(v)), v))
    columns.limit(len(values), name, [file for _, file in tables])
    number = {v: k for k, v in enumerate(values)}
    ys = []
    for part in rows:
        y = np.zeros((len(part), len(values)), np.int64)
        for row, found in zip(y, part, strict=True):
            row[[number[v] for v in found]] = 1
        ys.append(y)
    return Read(ys, tuple(map(str, values)), [], [{} for _ in tables])


def further(tables: Sequence[tuple[pa.Table, str]], wanted: Mapping[str, Sequence[str]]) -> list[dict[str, np.ndarray]]:
    """Read further columns of batches, (n,) of one column and (n, k) of several: whole numbers as int64, others as float32; where some
    value is missing it is 0, and column NAME_mask says where it is there."""
    out: list[dict[str, np.ndarray]] = [{} for _ in tables]
    for name, of in wanted.items():
        read = [columns.features(table, of, file, f"columns.{name}") for table, file in tables]
        whole = all(columns.kind_of(t[n].type) == "whole numbers" for t, _ in tables for n in of)
        missing = any(np.isnan(values).any() for values in read)
        for part, values in zip(out, read, strict=True):
            known = ~np.isnan(values)
            made = np.nan_to_num(values).astype(np.int64 if whole else np.float32)
            part[name] = made[:, 0] if len(of) == 1 else made
            if missing:
                part[f"{name}_mask"] = (known[:, 0] if len(of) == 1 else known).astype(np.float32)
    return out
