"""Which column of a table is what: image, text, a record's fields, features, label, natural client, domain and split.

Decided by the options; else by the schema's metadata entry `shelf` (JSON: height, width, channels, features, label_names);
else by the usual names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data import instruct
from rayfed.data.columns import fraction_problems
from rayfed.errors import nearest

if TYPE_CHECKING:
    import pyarrow as pa

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
ROLES = ("image", "text", *instruct.FIELDS, "label", "client", "domain", "split")  # of one column each


@dataclass(frozen=True)
class Columns:
    """Names of the columns, None for what the table does not hold.

    features: names of numeric columns; shape: (height, width, channels) of images; label_names: of the classes, () where
    nothing says them. Exactly one of image, text, response and features is there.
    """

    label: str | None
    image: str | None = None
    text: str | None = None
    instruction: str | None = None
    input: str | None = None
    response: str | None = None
    features: Sequence[str] | None = None
    client: str | None = None
    domain: str | None = None
    split: str | None = None
    shape: Sequence[int] | None = None
    label_names: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Return the kind of the data: image, text, instruct or tabular."""
        if self.image:
            return "image"
        if self.text:
            return "text"
        return "instruct" if self.response else "tabular"

    def named(self) -> list[tuple[str, str]]:
        """Return (option, column) of all that are named."""
        one = [(n, getattr(self, n)) for n in ROLES]
        return [(n, c) for n, c in one if c] + [("features", f) for f in self.features or ()]


def option_problems(options: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options, whatever the table."""
    out = [
        f"task.data.{n}: {options[n]!r} found, allowed: the name of a column"
        for n in ("image", "text", "label", "client", "domain", "split")
        if n in options and not isinstance(options[n], str)
    ]
    features, shape = options.get("features"), options.get("shape")
    if features is not None and not _all_are(features, str):
        out.append(f"task.data.features: {features!r} found, allowed: a list of numeric columns")
    if shape is not None and not (_all_are(shape, int) and len(shape) == 3 and min(shape) > 0):
        out.append(f"task.data.shape: {shape!r} found, allowed: [height, width, channels]")
    given = [n for n in ("image", "text", "features", "response") if options.get(n)]
    if len(given) > 1:
        out.append(f"task.data.{given[-1]}: {' and '.join(given)} are both set; choose one")
    length = options.get("length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        out.append(f"task.data.length: {length!r} found, allowed: tokens of a text, a whole number >= 1")
    out += instruct.option_problems(options)
    return out + (fraction_problems(options["test"]) if "test" in options else [])


def _all_are(value: Any, kind: type) -> bool:
    """Return whether a value is a list of at least one item, all of a kind."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def columns_of(options: dict[str, Any], schema: pa.Schema, file: Any) -> tuple[Columns, list[str]]:
    """Return which column is what, and what is wrong with that; file: what messages call the table."""
    use, problems = _chosen(options, schema), []
    names = schema.names
    there = f"columns: {', '.join(names)}"
    if use.image == "image" and "image" not in names and "image" not in options:
        problems.append(
            f"task.data: {file} has no column 'image'{nearest('image', names)}; name it (image: COLUMN), a column of texts "
            f"(text: COLUMN) or numeric columns (features: [...]); {there}"
        )
        use = replace(use, image=None)
    for option, column in use.named():
        if column not in names and not (option == "label" and problems):
            problems.append(f"task.data.{option}: {file} has no column {column!r}{nearest(column, names)}; {there}")
    problems += _type_problems(use, schema, file)
    unused = [n for n in instruct.OPTIONS if n in options and not use.response]
    if unused and not problems:
        problems.append(
            f"task.data.{unused[0]}: belongs to instructions with answers; name the answers' column (response: COLUMN); {there}"
        )
    return use, problems + _feature_problems(use, schema, file)


def _chosen(options: dict[str, Any], schema: pa.Schema) -> Columns:
    """Return what the options, the schema's metadata and the usual names say, whether such columns exist or not."""
    about = json.loads((schema.metadata or {}).get(b"shelf", b"{}"))
    names = schema.names
    features = options.get("features") or about.get("features")
    record = _record(options, names, bool(features))
    label = options.get("label", "label")
    if record["response"] and "label" not in options:
        label = next((n for n in instruct.LABELS if n in names), None)
    text = options.get("text")
    if not text and not (features or record["response"] or "image" in names or "image" in options):
        text = next((t for t in TEXT if t in names), None)
    shape = options.get("shape")
    if not shape and "height" in about:
        shape = [about["height"], about["width"], about.get("channels", 1)]
    return Columns(
        label=label,
        image=options.get("image", None if features or text or record["response"] else "image"),
        text=text,
        **record,
        features=features,
        **{n: options.get(n, n if n in names else None) for n in ("client", "domain", "split")},
        shape=shape,
        label_names=tuple(about.get("label_names") or ()),
    )


def _record(options: dict[str, Any], names: Sequence[str], features: bool) -> dict[str, Any]:
    """Return the columns of instruction, input and response, each None where the table holds no instructions."""
    found = {n: options.get(n) or next((c for c in usual if c in names), None) for n, usual in instruct.COLUMNS.items()}
    other = features or "image" in names or any(n in options for n in ("image", "text"))
    if "response" in options or (found["instruction"] and found["response"] and not other):
        return {**found, "instruction": found["instruction"] or instruct.COLUMNS["instruction"][0]}
    return dict.fromkeys(found)


def _type_problems(use: Columns, schema: pa.Schema, file: Any) -> list[str]:
    """Return what is wrong with the types of the columns that are there."""
    import pyarrow as pa

    problems = _image_problems(use, schema, file) if use.image in schema.names else []
    for n in ("text", *instruct.FIELDS):
        column = getattr(use, n)
        if column in schema.names:
            kind = schema.field(column).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                problems.append(f"task.data.{n}: column {column!r} of {file} is {kind}, allowed: text")
    return problems


def _feature_problems(use: Columns, schema: pa.Schema, file: Any) -> list[str]:
    import pyarrow as pa

    problems = []
    for f in use.features or ():
        kind = schema.field(f).type if f in schema.names else pa.bool_()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            problems.append(f"task.data.features: column {f!r} of {file} is {kind}, allowed: numbers")
    return problems


def _image_problems(use: Columns, schema: pa.Schema, file: Any) -> list[str]:
    """Return what is wrong with the column of images: its type, or its bytes against the shape."""
    import pyarrow as pa

    kind = schema.field(use.image).type
    size = kind.byte_width if pa.types.is_fixed_size_binary(kind) else None
    if size is None and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return [
            f"task.data.image: column {use.image!r} of {file} is {kind}, allowed: raw bytes "
            "(encoded pictures are read through hf:FOLDER)"
        ]
    if not use.shape:
        return [
            f"task.data.shape: missing; images need [height, width, channels] where the file does not say them, {file} does not"
        ]
    expected = int(np.prod(use.shape))
    if size is not None and size != expected:
        return [f"task.data.shape: {use.shape} is {expected} bytes, the images of {file} have {size}"]
    return []
