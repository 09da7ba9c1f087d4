"""Parquet folders: train.parquet, optionally test.parquet; images as raw bytes, texts, instructions with responses, or numeric
columns; one label column.

Which column is what: the options `image, text, instruction, input, response, label, client, domain, split, features, shape`, else
the schema's metadata entry `shelf` (JSON: height, width, channels, features, label_names), else the usual names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, instruct, stratified, unknown_options
from rayfed.data.columns import fraction_problems, labels, standardised
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config.schema import Named

OPTIONS = (
    "image",
    "text",
    "label",
    "client",
    "domain",
    "split",
    "features",
    "shape",
    "length",
    "test",
    *instruct.OPTIONS,
)
TEXT = ("text", "sentence")
SPLITS = ("train", "valid", "test", "test_unseen")


def _folder(spec: Named) -> Path:
    return Path(spec.name.partition(":")[2]).expanduser()


def _option_problems(o: dict[str, Any]) -> list[str]:
    out = [
        f"task.data.{n}: {o[n]!r} found, allowed: the name of a column"
        for n in ("image", "text", "label", "client", "domain", "split")
        if n in o and not isinstance(o[n], str)
    ]
    features, shape = o.get("features"), o.get("shape")
    if features is not None and not (
        isinstance(features, list) and features and all(isinstance(f, str) for f in features)
    ):
        out.append(f"task.data.features: {features!r} found, allowed: a list of numeric columns")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 3 and all(isinstance(s, int) and s > 0 for s in shape)
    ):
        out.append(f"task.data.shape: {shape!r} found, allowed: [height, width, channels]")
    said = [n for n in ("image", "text", "features", "response") if o.get(n)]
    if len(said) > 1:
        out.append(f"task.data.{said[-1]}: {' and '.join(said)} are both set; choose one")
    length = o.get("length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        out.append(f"task.data.length: {length!r} found, allowed: tokens of a text, a whole number >= 1")
    out += instruct.option_problems(o)
    return out + (fraction_problems(o["test"]) if "test" in o else [])


def _layout(spec: Named, schema: pa.Schema, file: Any) -> tuple[dict[str, Any], list[str]]:
    """(which column is what, problems) of one file."""
    import pyarrow as pa

    meta = json.loads((schema.metadata or {}).get(b"shelf", b"{}"))
    o, columns = spec.options, schema.names
    there = f"columns: {', '.join(columns)}"
    use: dict[str, Any] = {"label": o.get("label", "label"), "names": tuple(meta.get("label_names") or ())}
    use["features"] = o.get("features") or meta.get("features")
    use |= _record(o, columns, use)
    if use["response"] and "label" not in o:
        use["label"] = next((n for n in instruct.LABELS if n in columns), None)
    use["text"] = o.get("text") or next(
        (
            t
            for t in TEXT
            if t in columns and not (use["features"] or use["response"] or "image" in columns or "image" in o)
        ),
        None,
    )
    use["image"] = o.get("image", None if use["features"] or use["text"] or use["response"] else "image")
    use["shape"] = o.get("shape") or (
        [meta["height"], meta["width"], meta.get("channels", 1)] if "height" in meta else None
    )
    for n in ("client", "domain", "split"):
        use[n] = o.get(n, n if n in columns else None)
    problems = []
    if use["image"] == "image" and "image" not in columns and "image" not in o:
        problems.append(
            f"task.data: {file} has no column 'image'{nearest('image', columns)}; name it (image: COLUMN), a column of texts "
            f"(text: COLUMN) or numeric columns (features: [...]); {there}"
        )
        use["image"] = None
    roles = ("image", "text", *instruct.FIELDS, "label", "client", "domain", "split")
    wanted = [(n, use[n]) for n in roles if use[n]]
    wanted += [("features", f) for f in use["features"] or ()]
    problems += [
        f"task.data.{n}: {file} has no column {c!r}{nearest(c, columns)}; {there}"
        for n, c in wanted
        if c not in columns and not (n == "label" and problems)
    ]
    if use["image"] in columns:
        kind = schema.field(use["image"]).type
        size = kind.byte_width if pa.types.is_fixed_size_binary(kind) else None
        if size is None and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            problems.append(
                f"task.data.image: column {use['image']!r} of {file} is {kind}, allowed: raw bytes "
                "(encoded pictures are read through hf:FOLDER)"
            )
        elif not use["shape"]:
            problems.append(
                f"task.data.shape: missing; images need [height, width, channels] where the file does not say them, {file} does not"
            )
        elif size is not None and size != int(np.prod(use["shape"])):
            problems.append(
                f"task.data.shape: {use['shape']} is {int(np.prod(use['shape']))} bytes, the images of {file} have {size}"
            )
    for n in ("text", *instruct.FIELDS):
        if use[n] in columns:
            kind = schema.field(use[n]).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                problems.append(f"task.data.{n}: column {use[n]!r} of {file} is {kind}, allowed: text")
    unused = [n for n in instruct.OPTIONS if n in o and not use["response"]]
    if unused and not problems:
        problems.append(
            f"task.data.{unused[0]}: belongs to instructions with answers; name the answers' column (response: COLUMN); {there}"
        )
    for f in use["features"] or ():
        if f in columns:
            kind = schema.field(f).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
                problems.append(f"task.data.features: column {f!r} of {file} is {kind}, allowed: numbers")
    return use, problems


def _record(o: dict[str, Any], columns: list[str], use: dict[str, Any]) -> dict[str, str | None]:
    """Columns of instruction, input and response, each None where the table holds no instructions."""
    found = {n: o.get(n) or next((c for c in known if c in columns), None) for n, known in instruct.COLUMNS.items()}
    other = use["features"] or "image" in columns or any(n in o for n in ("image", "text"))
    if "response" in o or (found["instruction"] and found["response"] and not other):
        return {**found, "instruction": found["instruction"] or instruct.COLUMNS["instruction"][0]}
    return dict.fromkeys(found)


def check(spec: Named) -> list[str]:
    """Reads the schemas only."""
    problems = unknown_options(spec, OPTIONS) + _option_problems(spec.options)
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
                problems += _layout(spec, pq.read_schema(file), file)[1]
            except (pa.ArrowException, OSError, ValueError) as e:
                problems.append(f"task.data: {file} is not readable as Parquet: {e}")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """Without test.parquet, a stratified share `test` (0.2) of the rows, the same for every seed, is the test part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = _folder(spec)
    files = [f for f in (folder / "train.parquet", folder / "test.parquet") if f.is_file()]
    try:
        tables = [pq.read_table(f) for f in files]
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(f"task.data: {folder} cannot be read: {e}") from None
    return made_of(tables, spec, files[0], folder)


def made_of(tables: list[pa.Table], spec: Named, file: Any, folder: Any) -> Dataset:
    """A data set of one table or two; `file`, `folder`: what messages call them."""
    import pyarrow as pa

    use, problems = _layout(spec, tables[0].schema, file)
    if problems:
        raise ConfigError(problems)
    if not tables[0].num_rows:
        raise ConfigError(f"task.data: {file} has no rows")
    columns = []
    for t in tables if use["label"] else ():
        if t[use["label"]].null_count:
            raise ConfigError(
                f"task.data.label: {t[use['label']].null_count} rows of {folder} have no value in column {use['label']!r}"
            )
        kind = t[use["label"]].type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
        columns.append(np.array(t[use["label"]].to_pylist(), object) if text else t[use["label"]].to_numpy())
    ys, names = (
        labels(columns, use["label"], str(folder), use["names"])
        if use["label"]
        else ([np.zeros(t.num_rows, np.int64) for t in tables], ("all",))
    )
    take = _images if use["image"] else _texts if use["text"] else _records if use["response"] else _features
    parts = [
        Part(
            take(t, use, folder),
            y,
            *(_text(t, use[n], missing) for n, missing in (("client", ""), ("domain", ""), split)),
        )
        for t, y, split in zip(tables, ys, (("split", "train"), ("split", "test")), strict=False)
    ]
    _known_splits(parts, use, folder)
    train, test = _train_and_test(parts, float(spec.options.get("test", 0.2)))
    if not len(train.y):
        raise ConfigError(f"task.data.split: no row of {folder} is for training (train or valid)")
    if use["features"]:
        a, b = standardised(train.x, test.x)
        train, test = (Part(x, p.y, p.client, p.domain, p.split) for x, p in ((a, train), (b, test)))
    kind = "image" if use["image"] else "text" if use["text"] else "instruct" if use["response"] else "tabular"
    return Dataset(spec.name, train, test, len(names), names, kind)


def _train_and_test(parts: list[Part], share: float) -> tuple[Part, Part]:
    """By the split column where there is one, whatever the file; else by file; of one file without test rows, a share."""
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


def _known_splits(parts: list[Part], use: dict[str, Any], folder: Any) -> None:
    for p in parts:
        for value in np.unique(p.split) if p.split is not None else ():
            if str(value) not in SPLITS:
                raise ConfigError(
                    f"task.data.split: column {use['split']!r} of {folder} holds {str(value)!r}"
                    f"{nearest(str(value), SPLITS)}, allowed: {', '.join(SPLITS)}"
                )


def _images(table: pa.Table, use: dict[str, Any], folder: Any) -> np.ndarray:
    """(n, C, H, W) float32 in [0, 1] from bytes H x W x C."""
    h, w, c = use["shape"]
    column = table[use["image"]]
    if column.null_count:
        raise ConfigError(f"task.data.image: {column.null_count} rows of {folder} have no image")
    pictures = column.to_pylist()
    if any(len(p) != h * w * c for p in pictures):
        raise ConfigError(f"task.data.shape: images of {folder} do not have {h} x {w} x {c} bytes each")
    flat = np.frombuffer(b"".join(pictures), np.uint8)
    x = np.ascontiguousarray(flat.reshape(-1, h, w, c).transpose(0, 3, 1, 2)).astype(np.float32)
    x /= np.float32(255)
    return x


def _texts(table: pa.Table, use: dict[str, Any], folder: Any) -> np.ndarray:
    """(n,) texts, as objects."""
    column = table[use["text"]]
    if column.null_count:
        raise ConfigError(f"task.data.text: {column.null_count} rows of {folder} have no text")
    return np.array(column.to_pylist(), object)


def _records(table: pa.Table, use: dict[str, Any], folder: Any) -> np.ndarray:
    """(n, 3) instruction, input and response, as objects; an input that is missing is empty."""
    for n in ("instruction", "response"):
        if table[use[n]].null_count:
            raise ConfigError(f"task.data.{n}: {table[use[n]].null_count} rows of {folder} have no {n}")
    out = np.full((table.num_rows, 3), "", object)
    for i, n in enumerate(instruct.FIELDS):
        if use[n] in table.column_names:
            out[:, i] = ["" if v is None else v for v in table[use[n]].to_pylist()]
    return out


def _features(table: pa.Table, use: dict[str, Any], folder: Any) -> np.ndarray:
    """(n, f) float64, NaN where missing."""
    return np.stack([np.asarray(table[f].cast("float64").to_numpy(), np.float64) for f in use["features"]], 1)


def _text(table: pa.Table, name: str | None, missing: str) -> np.ndarray | None:
    """A column as text; `missing` in every row of a file that lacks a column which the other one has."""
    if name is None:
        return None
    if name not in table.column_names:
        return np.full(table.num_rows, missing)
    return np.array(["" if v is None else str(v) for v in table[name].to_pylist()], dtype=str)
