"""Parquet folders: train.parquet, optionally test.parquet, images as bytes or numeric columns, one label column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, stratified, unknown_options
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config import Named

OPTIONS = ("image", "label", "client", "domain", "split", "features", "shape", "test")


def _folder(spec: Named) -> Path:
    return Path(spec.name.partition(":")[2]).expanduser()


def _layout(spec: Named, schema: pa.Schema) -> tuple[dict[str, Any], list[str]]:
    """The columns that are used, from the options, else from the `shelf` metadata, else by their usual names."""
    meta = json.loads((schema.metadata or {}).get(b"shelf", b"{}"))
    o = spec.options
    shape = o.get("shape") or ([meta["height"], meta["width"], meta.get("channels", 1)] if "height" in meta else None)
    use: dict[str, Any] = {
        "shape": shape,
        "label": o.get("label", "label"),
        "features": o.get("features") or meta.get("features"),
    }
    use["image"] = o.get("image", "image") if not o.get("features") else None
    for name in ("client", "domain", "split"):
        use[name] = o.get(name, name if name in schema.names else None)
    problems = []
    if use["image"] not in schema.names:
        use["image"] = None
        if not use["features"]:
            text = "; sets of text come with the language-model tasks" if "text" in schema.names else ""
            asked, there = o.get("image", "image"), ", ".join(schema.names)
            problems.append(
                f"task.data: {_folder(spec)} has no column {asked!r} and no `features` are named{text}; columns: {there}"
            )
    elif not shape:
        problems.append("task.data.shape: images need [height, width, channels] where the file does not say them")
    wanted = [use["label"], *(use[n] for n in ("client", "domain", "split") if use[n]), *(use["features"] or [])]
    problems += [
        f"task.data: column {c!r} is not in {_folder(spec)}{nearest(c, schema.names)}; columns: {', '.join(schema.names)}"
        for c in wanted
        if c not in schema.names
    ]
    use["names"] = tuple(meta.get("label_names") or ())
    return use, problems


def check(spec: Named) -> list[str]:
    problems = unknown_options(spec, OPTIONS)
    train = _folder(spec) / "train.parquet"
    if not train.is_file():
        return [*problems, f"task.data: {train} does not exist (parquet:DIR needs DIR/train.parquet)"]
    import pyarrow.parquet as pq

    try:
        return problems + _layout(spec, pq.read_schema(train))[1]
    except Exception as e:
        return [*problems, f"task.data: {train} is not readable as Parquet: {e}"]


def load(spec: Named, seed: int) -> Dataset:
    import pyarrow.parquet as pq

    folder = _folder(spec)
    table = pq.read_table(folder / "train.parquet")
    use, problems = _layout(spec, table.schema)
    if problems:
        raise ConfigError(problems)
    train = _part(table, use, folder)
    if (folder / "test.parquet").is_file():
        test = _part(pq.read_table(folder / "test.parquet"), use, folder)
    else:
        mask = stratified(
            train.y, float(spec.options.get("test", 0.2)), keys.numpy(keys.key(0, 0, -1, "parquet test rows"))
        )
        train, test = train.take(~mask), train.take(mask)
    classes = max(int(train.y.max()), int(test.y.max()) if len(test.y) else 0) + 1
    names = use["names"] if len(use["names"]) == classes else tuple(map(str, range(classes)))
    return Dataset(spec.name, train, test, classes, names, "image" if use["image"] else "tabular")


def _part(table: pa.Table, use: dict[str, Any], folder: Path) -> Part:
    label = table[use["label"]]
    if label.null_count:
        raise ConfigError(f"task.data: {label.null_count} rows of {folder} have no {use['label']!r}")
    y = np.asarray(label.to_numpy())
    if y.dtype.kind not in "iu":
        raise ConfigError(
            f"task.data: column {use['label']!r} of {folder} is {label.type}, allowed: whole numbers from 0"
        )
    if len(y) and y.min() < 0:
        raise ConfigError(f"task.data: column {use['label']!r} of {folder} holds {y.min()}, allowed: from 0")
    if use["image"]:
        h, w, c = use["shape"]
        flat = np.frombuffer(b"".join(table[use["image"]].to_pylist()), np.uint8)
        if flat.size != len(y) * h * w * c:
            raise ConfigError(f"task.data: images of {folder} do not have {h}x{w}x{c} bytes each")
        x = (flat.reshape(-1, h, w, c).transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
    else:
        columns = [np.asarray(table[f].to_numpy(zero_copy_only=False), np.float64) for f in use["features"]]
        x = np.stack(columns, 1)
        mean = np.nanmean(x, 0)
        x = np.where(np.isnan(x), mean, x)  # a missing measurement says nothing: it becomes the mean
        x = ((x - mean) / np.maximum(x.std(0), 1e-9)).astype(np.float32)

    def text(name: str) -> np.ndarray | None:
        return np.asarray(table[use[name]].to_pylist(), dtype=str) if use[name] else None

    return Part(np.ascontiguousarray(x), y.astype(np.int64), text("client"), text("domain"), text("split"))
