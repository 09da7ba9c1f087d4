"""Labelled sets through the `datasets` library: `hf:NAME` from the hub or its cache, `hf:FOLDER` from disk.

A folder was made with `save_to_disk`, or holds files that `load_dataset` understands (Parquet, image folders). Texts, and
instructions with responses, are those of `parquet:`, with the same options.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed import keys
from rayfed.data import Dataset, Part, instruct, parquet, stratified, unknown_options
from rayfed.data.columns import fraction_problems, labels, standardised
from rayfed.data.table import TEXT
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

WORDS = ("text", "length", *instruct.OPTIONS)  # of texts and of instructions with responses
OPTIONS = ("image", "label", "client", "domain", "features", "train", "test", "config", *WORDS)
IMAGE = ("image", "img")


def check(spec: Named) -> list[str]:
    """Options, and the folder where a folder is meant; the hub is asked only by `load`."""
    where, o = spec.name.partition(":")[2], spec.options
    problems = unknown_options(spec, OPTIONS)
    problems += [
        f"task.data.{n}: {o[n]!r} found, allowed: a name"
        for n in OPTIONS
        if n in o and n not in ("features", "test", *WORDS) and not isinstance(o[n], str)
    ]
    problems += instruct.option_problems(o)
    features = o.get("features")
    if features is not None and not (isinstance(features, list) and features):
        problems.append(f"task.data.features: {features!r} found, allowed: a list of numeric columns")
    if "test" in o and not isinstance(o["test"], str):
        problems += fraction_problems(o["test"])
    path = Path(where).expanduser()
    if (where.startswith((".", "/", "~")) or where.count("/") > 1) and not path.exists():
        problems.append(f"task.data: folder {where!r} does not exist")
    elif path.is_dir() and not any(path.iterdir()):
        problems.append(f"task.data: folder {where!r} is empty")
    return problems


def load(spec: Named, seed: int) -> Dataset:
    """Splits `train` and `test`; without a test split, a stratified share (0.2) of train, the same for every seed."""
    o = spec.options
    found = _open(spec)
    name, second = o.get("train", "train"), o.get("test", "test")
    splits = ", ".join(found)
    if name not in found:
        raise ConfigError(
            f"task.data.train: {spec.name} has no split {name!r}{nearest(name, found)}; splits: {splits} (train: NAME)"
        )
    if isinstance(second, str) and second not in found and "test" in o:
        raise ConfigError(
            f"task.data.test: {spec.name} has no split {second!r}{nearest(second, found)}; splits: {splits}"
        )
    tables = [found[name], *([found[second]] if isinstance(second, str) and second in found else [])]
    if _of_words(tables[0], o):
        return _words(tables, spec)
    use = _columns(tables[0], o, spec.name)
    label_names = tuple(getattr(tables[0].features[use["label"]], "names", None) or ())
    columns = [_label_column(t[use["label"]][:], use["label"], spec.name) for t in tables]
    ys, names = labels(columns, use["label"], spec.name, label_names if columns[0].dtype.kind == "i" else ())
    xs = [
        _features(t, use["features"]) if use["features"] else _pictures(t[use["image"]][:], spec.name) for t in tables
    ]
    if not use["features"]:
        # One scale for both parts, read from the training rows: bytes become [0, 1], numbers in [0, 1] stay.
        top = np.float32(255 if xs[0].max(initial=0) > 1 else 1)
        xs = [np.ascontiguousarray(x / top, np.float32) for x in xs]
        if any(x.shape[1:] != xs[0].shape[1:] for x in xs):
            raise ConfigError(f"task.data: the images of {spec.name} differ in size between {name} and {second}")
    parts = [
        Part(x, y, *(_text(t, o.get(n)) for n in ("client", "domain"))) for x, y, t in zip(xs, ys, tables, strict=True)
    ]
    if len(parts) == 1:
        share = second if isinstance(second, float) else 0.2
        mask = stratified(parts[0].y, share, keys.numpy(keys.key(0, 0, -1, "hf test rows")))
        parts = [parts[0].take(~mask), parts[0].take(mask)]
    train, test = parts
    if use["features"]:
        a, b = standardised(train.x, test.x)
        train, test = (Part(x, p.y, p.client, p.domain) for x, p in ((a, train), (b, test)))
    return Dataset(spec.name, train, test, len(names), names, "tabular" if use["features"] else "image")


def _of_words(table: Any, o: dict[str, Any]) -> bool:
    """Whether the rows are texts, or instructions with responses: said so, or by the columns' names."""
    columns = list(table.features)
    if any(n in o for n in WORDS):
        return True
    texts = any(c in columns for c in (*TEXT, *instruct.COLUMNS["response"]))
    return texts and not any(n in o for n in ("image", "features")) and not any(c in columns for c in IMAGE)


def _words(tables: list[Any], spec: Named) -> Dataset:
    """The splits as `parquet:` reads its files; classes keep the names that the set gives them."""
    label = spec.options.get("label", "label")
    names = getattr(tables[0].features.get(label), "names", None)
    arrow = [t.with_format("arrow")[:] for t in tables]
    if names:
        known = json.dumps({"label_names": names})
        arrow = [t.replace_schema_metadata({**(t.schema.metadata or {}), b"shelf": known.encode()}) for t in arrow]
    share = {"test": spec.options["test"]} if isinstance(spec.options.get("test"), float) else {}
    drop = ("train", "test", "config")
    options = {**{k: v for k, v in spec.options.items() if k not in drop}, **share}
    return parquet.from_tables(arrow, spec.model_copy(update={"options": options}), spec.name, spec.name)


def _open(spec: Named) -> Any:
    """A mapping from split to table."""
    import datasets

    where = spec.name.partition(":")[2]
    path = Path(where).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            found: Any = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.exists() else where, spec.options.get("config"))
    except Exception as e:
        text = f"task.data: {spec.name} cannot be loaded: {type(e).__name__}: {e}"
        if not path.exists() and isinstance(e, OSError):
            text += (
                "\n  Neither a local folder nor reachable on the Hugging Face hub from here. Without a network: put the set into a "
                "folder (Dataset.save_to_disk, or train.parquet and test.parquet) and use hf:FOLDER."
            )
        raise ConfigError(text) from None
    return found if isinstance(found, dict) else {"train": found}


def _columns(table: Any, o: dict[str, Any], name: str) -> dict[str, Any]:
    columns = list(table.features)
    use = {"label": o.get("label", "label"), "features": o.get("features")}
    use["image"] = None if use["features"] else o.get("image", next((c for c in IMAGE if c in columns), "image"))
    wanted = [("image", use["image"]), ("label", use["label"]), *(("features", f) for f in use["features"] or ())]
    wanted += [(n, o.get(n)) for n in ("client", "domain")]
    problems = [
        f"task.data.{n}: {name} has no column {c!r}{nearest(c, columns)}; columns: {', '.join(columns)}"
        for n, c in wanted
        if c and c not in columns
    ]
    if problems:
        raise ConfigError(problems)
    return use


def _label_column(values: Any, column: str, name: str) -> np.ndarray:
    if any(v is None for v in values):
        raise ConfigError(f"task.data.label: column {column!r} of {name} has rows without a label")
    if len(values) and isinstance(values[0], str):
        return np.array(values, object)
    a = np.asarray(values)
    if a.dtype.kind == "i" and (a == -1).all() and len(a):
        raise ConfigError(
            f"task.data.test: every label of one split of {name} is -1 (its labels are not published); "
            "use another split (test: NAME) or a share of train (test: 0.2)"
        )
    return a.astype(np.int64) if a.dtype.kind in "iub" else a


def _pictures(values: Any, name: str) -> np.ndarray:
    """(n, C, H, W) float32, not yet scaled, from pictures or from nested lists."""
    if len(values) and hasattr(values[0], "convert"):
        modes = {p.mode for p in values}
        mode = "L" if modes <= {"L", "1"} else "RGB"
        values = [p if p.mode == mode else p.convert(mode) for p in values]
    arrays = [np.asarray(p, np.float32) for p in values]
    shapes = {a.shape for a in arrays}
    if len(shapes) != 1 or len(next(iter(shapes))) not in (2, 3):
        shown = ", ".join("x".join(map(str, s)) for s in sorted(shapes)[:3])
        raise ConfigError(f"task.data.image: the images of {name} must have one size; found {len(shapes)}: {shown}")
    x = np.stack(arrays)
    if x.ndim == 3:
        return x[:, None]
    first = x.shape[1] in (1, 3) and x.shape[3] not in (1, 3, 4)  # channels come first already
    return x if first else x.transpose(0, 3, 1, 2)


def _features(table: Any, columns: list[str]) -> np.ndarray:
    try:
        return np.stack([np.asarray(table[f][:], np.float64) for f in columns], 1)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"task.data.features: {', '.join(columns)} must hold one number per row ({e})") from None


def _text(table: Any, name: str | None) -> np.ndarray | None:
    return None if name is None else np.array(["" if v is None else str(v) for v in table[name][:]], dtype=str)
