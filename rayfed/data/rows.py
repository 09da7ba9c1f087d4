"""Arrow tables as a data set: one of training rows, maybe one of test rows, from whatever file or library they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, chat, columns, instruct, pairs, pictures, regions, stratified, targets
from rayfed.data.interactions import leave_one_out
from rayfed.data.table import SPLITS, Columns, columns_of
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config.schema import Named


class File(NamedTuple):
    """A table, and what sentences call it: a file, or a split of a set."""

    table: pa.Table
    name: str


def dataset_of(files: Sequence[File], spec: Named, folder: str, purpose: str = "parquet test rows") -> Dataset:
    """Return a data set of one table or two.

    folder: what sentences call both; purpose: of the key that draws a test part from the training rows, a stratified share
    `test` (0.2), the same for every seed. ConfigError where the tables cannot be read as the options say.
    """
    o = spec.options
    use, problems = columns_of(o, [(f.table.schema, f.name) for f in files])
    if problems:
        raise ConfigError(problems)
    if not files[0].table.num_rows:
        raise ConfigError(f"task.data: {files[0].name} has no rows")
    if use.item:
        return _items(files, use, spec.name)
    if use.passage:
        return _pairs(files, use, spec, purpose)
    read = _targets(files, use)
    further = targets.further(files, use.further)
    for option, name in (("client", use.client), ("domain", use.domain)):
        has = [f for f in files if name in f.table.column_names]
        columns.same_kind([f.table[name] for f in has], str(name), [f.name for f in has], option)
    xs, about, sizes = _images(files, use, spec) if use.image else (_rows(files, use), [], [])
    if use.masks or use.boxes:
        read, further = _annotated(files, use, read, further, sizes, xs)
    if use.kind == "tabular":
        xs, about = _with_values(xs, files, use)
    parts = []
    for i, (x, y, f, missing) in enumerate(zip(xs, read.ys, files, ("train", "test"), strict=False)):
        client, domain = _names(f, use.client, "client", ""), _names(f, use.domain, "domain", "")
        own = {**read.columns[i], **further[i]}
        parts.append(Part(x, y, client, domain, _names(f, use.split, "split", missing), own))
    _check_splits(parts, use, files)
    train, test = _train_and_test(parts, float(o.get("test", 0.2)), purpose)
    if not len(train.y):
        raise ConfigError(f"task.data.split: no row of {folder} is for training (train or valid)")
    if use.kind == "tabular":
        k = len(use.features or ())  # one number for each value of a column comes behind, as it is
        made = columns.standardised(train.x[:, :k], test.x[:, :k], use.features or (), folder)
        train, test = (
            replace(p, x=np.concatenate([x, p.x[:, k:].astype(np.float32)], 1) if use.one_hot else x)
            for x, p in zip(made, (train, test), strict=True)
        )
    return Dataset(spec.name, train, test, len(read.names), read.names, use.kind, (*read.notes, *about))


def _items(files: Sequence[File], use: Columns, name: str) -> Dataset:
    """Return who took which item: the rows of all files together, split by time anew."""
    if not use.client:
        raise ConfigError(f"task.data.client: missing, the column of {files[0].name} that says whose the items are")
    item, time = str(use.item), use.time
    user = [columns.names(f.table[use.client], use.client, f.name, "client") for f in files]
    what = [columns.names(f.table[item], item, f.name, "item") for f in files]
    when = [columns.features(f.table, [time], f.name, "time")[:, 0] for f in files] if time else None
    return leave_one_out(
        name, np.concatenate(user), np.concatenate(what), None if when is None else np.concatenate(when)
    )


def _pairs(files: Sequence[File], use: Columns, spec: Named, purpose: str) -> Dataset:
    """Return pairs of questions and passages; rows that lack one of them are left out, and a note says how many."""
    parts, missing = [], 0
    for f, here in zip(files, ("train", "test"), strict=False):
        sides = [
            columns.texts(f.table[n], n, f.name, o)
            for o, n in (("question", use.question), ("passage", use.passage))
            if n
        ]
        questions, passages = (["" if v is None else v for v in side] for side in sides)
        x, there = pairs.paired(questions, passages, int(spec.options.get("length", 64)))
        missing += f.table.num_rows - len(there)
        client, domain = _names(f, use.client, "client", ""), _names(f, use.domain, "domain", "")
        whole = Part(
            np.zeros((f.table.num_rows, 0)),
            np.zeros(f.table.num_rows, np.int64),
            client,
            domain,
            _names(f, use.split, "split", here),
        )
        parts.append(replace(whole.take(there), x=x))
    _check_splits(parts, use, files)
    train, test = _train_and_test(parts, float(spec.options.get("test", 0.2)), purpose)
    if not len(train.y):
        raise ConfigError(
            f"task.data: no row of {spec.name} that is for training has words in {use.question} and in {use.passage}"
        )
    notes = (f"{missing:,} rows of {spec.name} lack a question or a passage, and are left out",) if missing else ()
    return Dataset(spec.name, train, test, 1, ("all",), "pairs", notes)


def _targets(files: Sequence[File], use: Columns) -> targets.Read:
    """Return what each table's y is: labels (n,) int64, several labels (n, L), or numbers; one class where no column holds any."""
    none: list[dict[str, np.ndarray]] = [{} for _ in files]
    if use.target:
        return targets.numbers(files, use.target)
    if use.labels:
        return targets.labels(files, use.labels)
    if not use.label:
        return targets.Read([np.zeros(f.table.num_rows, np.int64) for f in files], ("all",), [], none)
    found = [f.table[use.label] for f in files]
    return targets.Read(*columns.labels(found, use.label, [f.name for f in files], use.label_names), none)


def _train_and_test(parts: list[Part], share: float, purpose: str) -> tuple[Part, Part]:
    """Divide by the split column where there is one, whatever the file; else by file; of one file without test rows, a share."""
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
        further = {n: np.concatenate([p.columns[n] for p in parts]) for n in parts[0].columns}
        whole = Part(**joined, columns=further)
    else:
        whole = parts[0]
    mask = np.concatenate(is_test)
    if mask.any():
        return whole.take(~mask), whole.take(mask)
    classes = whole.y if whole.y.ndim == 1 and whole.y.dtype.kind == "i" else np.zeros(len(whole.y), np.int64)
    mask = stratified(classes, share, keys.numpy(keys.key(0, 0, -1, purpose)))
    train, test = whole.take(~mask), whole.take(mask)
    return train, replace(test, split=None)  # these rows are test now, whatever they were


def _check_splits(parts: list[Part], use: Columns, files: Sequence[File]) -> None:
    """Raise ConfigError for a value of the split column that is no split."""
    for p, f in zip(parts, files, strict=True):
        for value in np.unique(p.split) if p.split is not None else ():
            if str(value) not in SPLITS:
                raise ConfigError(
                    f"task.data.split: column {use.split!r} of {f.name} holds {str(value)!r}"
                    f"{nearest(str(value), SPLITS)}, allowed: {', '.join(SPLITS)}"
                )


def _annotated(
    files: Sequence[File],
    use: Columns,
    read: targets.Read,
    further: list[dict[str, np.ndarray]],
    sizes: Sequence[regions.Sizes],
    xs: Sequence[np.ndarray],
) -> tuple[targets.Read, list[dict[str, np.ndarray]]]:
    """Return targets and further columns with masks and boxes; where there are boxes, a picture's class is that of its first one."""
    if not use.image:
        raise ConfigError(f"task.data.{'masks' if use.masks else 'boxes'}: found, and {files[0].name} has no images")
    to = (xs[0].shape[2], xs[0].shape[3])
    if name := use.masks:
        found = [regions.masks(f.table[name], name, f.name, s, to) for f, s in zip(files, sizes, strict=True)]
        further = [{**columns, "masks": m} for columns, m in zip(further, found, strict=True)]
    if name := use.boxes:
        each = [regions.boxes(f.table[name], name, f.name, s, to) for f, s in zip(files, sizes, strict=True)]
        every = [b for part in each for b in part]
        most = max([1, *map(len, every)])
        made = [regions.padded(part, most) for part in each]
        further = [{**columns, "boxes": b} for columns, b in zip(further, made, strict=True)]
        classes = 1 + int(max([0, *(b[:, 0].max() for b in every if len(b))]))
        ys = [np.maximum(b[:, 0, 0], 0).astype(np.int64) for b in made]
        read = targets.Read(ys, tuple(map(str, range(classes))), read.notes, read.columns)
    return read, further


def _images(
    files: Sequence[File], use: Columns, spec: Named
) -> tuple[list[np.ndarray], list[str], list[regions.Sizes]]:
    """Return ((n, C, H, W) float32 per file, notes, each picture's own height and width per file)."""
    found: list[pictures.Pictures] = []
    notes: list[str] = []
    image = str(use.image)
    for table, name in files:
        column = columns.plain(table[image], image, name, "image")
        if column.null_count:
            raise ConfigError(f"task.data.image: {column.null_count} rows of {name} have no image")
        if pictures.is_bytes(column.type) and use.shape:
            found.append(list(pictures.of_bytes(column, use.shape, name)))
        elif pictures.is_bytes(column.type) or pictures.is_file(column.type):
            more, about = pictures.of_files(column, name)
            found.append(more)
            notes += about
        else:
            found.append(pictures.of_arrays(column, image, name))
    sizes: list[regions.Sizes] = [[(p.shape[1], p.shape[2]) for p in part] for part in found]
    made, about = pictures.unified(found, spec.name, spec.options)
    return made, notes + about, sizes


def _rows(files: Sequence[File], use: Columns) -> list[np.ndarray]:
    """Return texts (n,), records (n, 3), chats (n, 1) or features (n, f) per file."""
    if use.messages:
        return [chat.records(f.table[use.messages], use.messages, f.name) for f in files]
    if use.kind == "tabular" and not use.features:
        return [np.zeros((f.table.num_rows, 0)) for f in files]
    if use.features:
        return [columns.features(f.table, use.features, f.name) for f in files]
    if use.text:
        return [_given(f, use.text, "text") for f in files]
    return [_records(f, use) for f in files]


def _with_values(xs: list[np.ndarray], files: Sequence[File], use: Columns) -> tuple[list[np.ndarray], list[str]]:
    """Return (features followed by the columns `one_hot` as one number for each value, per file; notes)."""
    notes: list[str] = []
    found = xs
    for name in use.one_hot:
        made, about = columns.one_hot([f.table[name] for f in files], name, [f.name for f in files])
        found, notes = [np.concatenate([x, v], 1) for x, v in zip(found, made, strict=True)], [*notes, *about]
    if use.by_type and use.features:
        notes.append(f"features of {files[0].name} are all its columns of numbers: {', '.join(use.features)}")
    return found, notes


def _given(file: File, name: str, role: str) -> np.ndarray:
    """Return (n,) texts as objects, none of them missing."""
    if missing := file.table[name].null_count:
        raise ConfigError(f"task.data.{role}: {missing} rows of {file.name} have no {role}")
    return columns.texts(file.table[name], name, file.name, role)


def _records(file: File, use: Columns) -> np.ndarray:
    """Return (n, 3) instruction, input and response, as objects; an input that is missing is empty."""
    out = np.full((file.table.num_rows, 3), "", object)
    for i, n in enumerate(instruct.FIELDS):
        name = getattr(use, n)
        if n != "input":
            out[:, i] = _given(file, name, n)
        elif name in file.table.column_names:
            found = columns.texts(file.table[name], name, file.name, n)
            out[:, i] = ["" if v is None else v for v in found]
    return out


def _names(file: File, name: str | None, role: str, missing: str) -> np.ndarray | None:
    """Return a column as text; `missing` in every row of a file that lacks a column which the other one has."""
    if name is None:
        return None
    if name not in file.table.column_names:
        return np.full(file.table.num_rows, missing)
    return columns.names(file.table[name], name, file.name, role)
