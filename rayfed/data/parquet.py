"""Parquet folders: train.parquet, optionally test.parquet; images as raw bytes, texts, instructions with responses, or numeric
columns; one label column. `rayfed.data.table` says which column is what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, instruct, stratified, unknown_options
from rayfed.data.columns import labels, standardised
from rayfed.data.table import OPTIONS, Columns, columns_of, option_problems
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config.schema import Named

SPLITS = ("train", "valid", "test", "test_unseen")


def _folder(spec: Named) -> Path:
    return Path(spec.name.partition(":")[2]).expanduser()


def check(spec: Named) -> list[str]:
    """Return what is wrong with the options and with the files' schemas; no row is read."""
    problems = unknown_options(spec, OPTIONS) + option_problems(spec.options)
    folder = _folder(spec)
    train = folder / "train.parquet"
    if not folder.is_dir():
        return [*problems, f"task.data: folder {str(folder)!r} does not exist (parquet:DIR needs DIR/train.parquet)"]
    if not train.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("*.parquet"))) or "no Parquet file"
        return [*problems, f"task.data: {train} does not exist; found: {found}"]
    if problems:
        return problems
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in (train, folder / "test.parquet"):
        if file.is_file() and not problems:
            try:
                problems += columns_of(spec.options, pq.read_schema(file), file)[1]
            except (pa.ArrowException, OSError, ValueError) as e:
                problems.append(f"task.data: {file} is not readable as Parquet: {e}")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """Return the data set. Without test.parquet, a stratified share `test` (0.2) of the rows is the test part, the same for
    every seed. ConfigError where a file cannot be read as described."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = _folder(spec)
    files = [f for f in (folder / "train.parquet", folder / "test.parquet") if f.is_file()]
    try:
        tables = [pq.read_table(f) for f in files]
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(f"task.data: {folder} cannot be read: {e}") from None
    return from_tables(tables, spec, files[0], folder)


def from_tables(tables: list[pa.Table], spec: Named, file: Any, folder: Any) -> Dataset:
    """Return the data set of one table or of two; file, folder: what messages call them.

    ConfigError where columns are missing or of another type, or no row is for training.
    """
    use, problems = columns_of(spec.options, tables[0].schema, file)
    if problems:
        raise ConfigError(problems)
    if not tables[0].num_rows:
        raise ConfigError(f"task.data: {file} has no rows")
    ys, names = _labels(tables, use, folder)
    parts = []
    for table, y, missing in zip(tables, ys, ("train", "test"), strict=False):
        x = _inputs(table, use, folder)
        client, domain = _text(table, use.client, ""), _text(table, use.domain, "")
        parts.append(Part(x, y, client, domain, _text(table, use.split, missing)))
    _check_splits(parts, use, folder)
    train, test = _train_and_test(parts, float(spec.options.get("test", 0.2)))
    if not len(train.y):
        raise ConfigError(f"task.data.split: no row of {folder} is for training (train or valid)")
    if use.features:
        a, b = standardised(train.x, test.x)
        train, test = (Part(x, p.y, p.client, p.domain, p.split) for x, p in ((a, train), (b, test)))
    return Dataset(spec.name, train, test, len(names), names, use.kind)


def _labels(tables: list[pa.Table], use: Columns, folder: Any) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return each table's labels (n,) int64, and the classes' names; one class where no column holds labels."""
    import pyarrow as pa

    if not use.label:
        return [np.zeros(t.num_rows, np.int64) for t in tables], ("all",)
    found = []
    for table in tables:
        column = table[use.label]
        if column.null_count:
            raise ConfigError(
                f"task.data.label: {column.null_count} rows of {folder} have no value in column {use.label!r}"
            )
        kind = column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        found.append(np.array(column.to_pylist(), object) if text else column.to_numpy())
    return labels(found, use.label, str(folder), use.label_names)


def _train_and_test(parts: list[Part], share: float) -> tuple[Part, Part]:
    """Return training and test rows: by the split column where there is one, else by file, else by a stratified share."""
    is_test = [
        np.full(len(p.y), i == 1) if p.split is None else np.char.startswith(p.split, "test")
        for i, p in enumerate(parts)
    ]
    if len(parts) == 2 and not is_test[0].any() and is_test[1].all():
        return parts[0], parts[1]
    if len(parts) == 2:
        joined: dict[str, Any] = {
            n: None if getattr(parts[0], n) is None else np.concatenate([getattr(p, n) for p in parts])
            for n in ("x", "y", "client", "domain", "split")
        }
        whole = Part(**joined)
    else:
        whole = parts[0]
    mask = np.concatenate(is_test)
    if mask.any():
        return whole.take(~mask), whole.take(mask)
    mask = stratified(whole.y, share, keys.numpy(keys.key(0, 0, -1, "parquet test rows")))
    train, test = whole.take(~mask), whole.take(mask)
    return train, Part(test.x, test.y, test.client, test.domain, None)  # these rows are test now, whatever they were


def _check_splits(parts: list[Part], use: Columns, folder: Any) -> None:
    """Raise ConfigError for a value of the split column that is no split."""
    for p in parts:
        for value in np.unique(p.split) if p.split is not None else ():
            if str(value) not in SPLITS:
                raise ConfigError(
                    f"task.data.split: column {use.split!r} of {folder} holds {str(value)!r}"
                    f"{nearest(str(value), SPLITS)}, allowed: {', '.join(SPLITS)}"
                )


def _inputs(table: pa.Table, use: Columns, folder: Any) -> np.ndarray:
    """Return the rows' inputs, x of a `Part`; features are not standardised yet."""
    read = {"image": _images, "text": _texts, "instruct": _records, "tabular": _features}
    return read[use.kind](table, use, folder)


def _images(table: pa.Table, use: Columns, folder: Any) -> np.ndarray:
    """Return (n, C, H, W) float32 in [0, 1] from bytes H x W x C."""
    assert use.shape is not None
    h, w, c = use.shape
    column = table[use.image]
    if column.null_count:
        raise ConfigError(f"task.data.image: {column.null_count} rows of {folder} have no image")
    pictures = column.to_pylist()
    if any(len(p) != h * w * c for p in pictures):
        raise ConfigError(f"task.data.shape: images of {folder} do not have {h} x {w} x {c} bytes each")
    flat = np.frombuffer(b"".join(pictures), np.uint8)
    x = np.ascontiguousarray(flat.reshape(-1, h, w, c).transpose(0, 3, 1, 2)).astype(np.float32)
    x /= np.float32(255)
    return x


def _texts(table: pa.Table, use: Columns, folder: Any) -> np.ndarray:
    """Return (n,) texts, as objects."""
    column = table[use.text]
    if column.null_count:
        raise ConfigError(f"task.data.text: {column.null_count} rows of {folder} have no text")
    return np.array(column.to_pylist(), object)


def _records(table: pa.Table, use: Columns, folder: Any) -> np.ndarray:
    """Return (n, 3) instruction, input and response, as objects; an input that is missing is empty."""
    for n in ("instruction", "response"):
        missing = table[getattr(use, n)].null_count
        if missing:
            raise ConfigError(f"task.data.{n}: {missing} rows of {folder} have no {n}")
    out = np.full((table.num_rows, 3), "", object)
    for i, n in enumerate(instruct.FIELDS):
        column = getattr(use, n)
        if column in table.column_names:
            out[:, i] = ["" if v is None else v for v in table[column].to_pylist()]
    return out


def _features(table: pa.Table, use: Columns, folder: Any) -> np.ndarray:
    """Return (n, f) float64, NaN where missing."""
    return np.stack([np.asarray(table[f].cast("float64").to_numpy(), np.float64) for f in use.features or ()], 1)


def _text(table: pa.Table, name: str | None, missing: str) -> np.ndarray | None:
    """Return a column as text; `missing` in every row of a file that lacks a column which the other one has."""
    if name is None:
        return None
    if name not in table.column_names:
        return np.full(table.num_rows, missing)
    return np.array(["" if v is None else str(v) for v in table[name].to_pylist()], dtype=str)
