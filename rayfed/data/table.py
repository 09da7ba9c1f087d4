"""Which column of a table is what: image, text, a record's fields, features, label, natural client, domain and split.

Decided by the options; else by the schema's metadata entry `shelf` (JSON: height, width, channels, features, label_names);
else by the usual names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data import chat, columns, instruct, pictures, regions, targets
from rayfed.data.columns import kind_of
from rayfed.errors import nearest

if TYPE_CHECKING:
    import pyarrow as pa

NAMED = (
    "image",
    "text",
    "label",
    "client",
    "domain",
    "item",
    "time",
    "question",
    "passage",
    "messages",
    *regions.OPTIONS,
)  # options that name a column, of every source
OPTIONS = (*NAMED, *targets.OPTIONS, "features", "one_hot", "length", "test", *pictures.OPTIONS, *instruct.OPTIONS)
TEXT = ("text", "sentence")
IMAGE = ("image", "img")
SPLITS = ("train", "valid", "test", "test_unseen")
ROLES = (
    "image",
    "text",
    *instruct.FIELDS,
    "label",
    "client",
    "domain",
    "split",
    "item",
    "time",
    "question",
    "passage",
    "messages",
    *regions.OPTIONS,
)  # of one column each


@dataclass(frozen=True)
class Columns:
    """Names of the columns, None for what the table does not hold.

    features: names of numeric columns; shape: (height, width, channels) of images; label_names: of the classes, () where
    nothing says them; target: of numbers to predict, labels: of several labels a row, in the place of label; further: columns of a
    batch beside x and y, by its name for them; item: what the row's user, the client, took, time: when; question, passage:
    of pairs; messages: chats; masks, boxes: of images; one_hot:
    columns that become one number for each of their values, beside features; by_type: whether features are all numbers that there
    are. One of item, passage, image, text, response, messages and features is there, or one_hot.
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
    target: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    item: str | None = None
    time: str | None = None
    question: str | None = None
    passage: str | None = None
    messages: str | None = None
    masks: str | None = None
    boxes: str | None = None
    one_hot: tuple[str, ...] = ()
    by_type: bool = False

    @property
    def kind(self) -> str:
        """Return the kind of the data: items, pairs, image, text, instruct or tabular."""
        if self.passage:
            return "pairs"
        if self.item:
            return "items"
        if self.image:
            return "image"
        if self.text:
            return "text"
        return "instruct" if self.response or self.messages else "tabular"

    def named(self) -> list[tuple[str, str]]:
        """Return (option, column) of all that are named."""
        one = [(n, getattr(self, n)) for n in ROLES]
        several = [
            ("features", self.features or ()),
            ("one_hot", self.one_hot),
            ("target", self.target),
            ("labels", self.labels),
        ]
        several += [(f"columns.{n}", c) for n, c in self.further.items()]
        return [(n, c) for n, c in one if c] + [(n, c) for n, found in several for c in found]


def option_problems(options: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options that every source of tables has."""
    out = [
        f"task.data.{n}: {options[n]!r} found, allowed: the name of a column"
        for n in (*NAMED, "split")
        if n in options and not isinstance(options[n], str)
    ]
    features, shape = options.get("features"), options.get("shape")
    if features is not None and not _all_are(features, str):
        out.append(f"task.data.features: {features!r} found, allowed: a list of numeric columns")
    elif features is not None and len(set(features)) < len(features):
        out.append(f"task.data.features: {features!r} found, allowed: each column once")
    one_hot = options.get("one_hot")
    if one_hot is not None and (not _all_are(one_hot, str) or len(set(one_hot)) < len(one_hot)):
        out.append(
            f"task.data.one_hot: {one_hot!r} found, allowed: a list of columns of texts or whole numbers, each once"
        )
    elif both := sorted({*(one_hot or ())} & {*(features if isinstance(features, list) else ())}):
        out.append(f"task.data.one_hot: {both[0]!r} is among features too; allowed: in one of them")
    if shape is not None and not (_all_are(shape, int) and len(shape) == 3 and min(shape) > 0):
        out.append(f"task.data.shape: {shape!r} found, allowed: [height, width, channels]")
    given = [n for n in ("item", "passage", "image", "text", "features", "response", "messages") if options.get(n)]
    if bool(options.get("question")) != bool(options.get("passage")):
        missing = "passage" if options.get("question") else "question"
        out.append(f"task.data.{missing}: missing; a pair has a column of questions and one of passages")
    if one_hot and given and given != ["features"]:
        out.append(f"task.data.one_hot: {given[0]} is set too, and columns of values belong to features; choose one")
    if options.get("time") and not options.get("item"):
        out.append("task.data.time: belongs to item: COLUMN, what a row's user took")
    if len(given) > 1:
        out.append(f"task.data.{given[-1]}: {' and '.join(given)} are both set; choose one")
    length = options.get("length", 1)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        out.append(f"task.data.length: {length!r} found, allowed: tokens of a text, a whole number >= 1")
    out += regions.option_problems(options)
    return (
        out + targets.option_problems(options) + pictures.option_problems(options) + instruct.option_problems(options)
    )


def _all_are(value: Any, kind: type) -> bool:
    """Return whether a value is a list of at least one item, all of a kind."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) for v in value)


def columns_of(options: dict[str, Any], schemas: Sequence[tuple[pa.Schema, str]]) -> tuple[Columns, list[str]]:
    """Return which column is what, and what is wrong with that.

    schemas: of one table or two, each with what messages call it; the first one decides.
    """
    use, problems = _columns_of(options, *schemas[0])
    decided = {n: getattr(use, n) for n in ("image", "text", "features", "instruction", "response", "messages")}
    options = {**options, **{n: c for n, c in decided.items() if c}}
    for schema, file in schemas[1:] if not problems else ():
        problems += _columns_of(options, schema, file)[1]
    return use, problems


def _columns_of(options: dict[str, Any], schema: pa.Schema, file: str) -> tuple[Columns, list[str]]:
    names, (about, problems) = schema.names, _metadata(schema, file)
    use, there = _chosen(options, schema, about), f"columns: {', '.join(schema.names)}"
    if len(names) == 1 and (mark := next((m for m in (";", "\t", "|") if m in names[0]), None)):
        found = f"task.data: {file} has one column, {names[0]!r}: its values are divided by {mark!r}"
        return use, [f"{found}, needed: a comma, or delimiter: {mark!r}"]
    if use.image == "image" and "image" not in names and "image" not in options:
        problems.append(
            f"task.data: {file} has no column 'image'{nearest('image', names)}; name it (image: COLUMN), a column of texts "
            f"(text: COLUMN) or numeric columns (features: [...]); {there}"
        )
        use = replace(use, image=None)
    for option, column in use.named():
        if column not in names and not (option == "label" and problems):
            problems.append(f"task.data.{option}: {file} has no column {column!r}{nearest(column, names)}; {there}")
        if names.count(column) > 1:
            problems.append(
                f"task.data.{option}: {file} has {names.count(column)} columns called {column!r}; allowed: one"
            )
    unused = [n for n in instruct.OPTIONS if n in options and not (use.response or use.messages)]
    if unused and not problems:
        problems.append(
            f"task.data.{unused[0]}: belongs to instructions with answers; name the answers' column (response: COLUMN); {there}"
        )
    once = [(option, schema.field(column)) for option, column in use.named() if names.count(column) == 1]
    return use, problems + [p for option, field in once if (p := _type_problem(option, field, use, file))]


def _metadata(schema: pa.Schema, file: str) -> tuple[dict[str, Any], list[str]]:
    """Return the schema's metadata entry `shelf`, and what is wrong with it."""
    try:
        about = json.loads((schema.metadata or {}).get(b"shelf", b"{}"))
    except ValueError as e:
        return {}, [f"task.data: the metadata entry 'shelf' of {file} is not JSON: {e}"]
    kinds = {"height": int, "width": int, "channels": int, "features": list, "label_names": list}
    found = {n: about[n] for n in kinds if about.get(n) is not None} if isinstance(about, dict) else {}
    wrong = [n for n, v in found.items() if type(v) is not kinds[n] or (isinstance(v, int) and v < 1)]
    if not isinstance(about, dict) or wrong or ("height" in found) != ("width" in found):
        return {}, [
            f"task.data: the metadata entry 'shelf' of {file} is {about!r:.100}, allowed: numbers height, width and channels, lists "
            "features and label_names"
        ]
    return found, []


def _chosen(options: dict[str, Any], schema: pa.Schema, about: dict[str, Any]) -> Columns:
    """Return what the options, the schema's metadata and the usual names say, whether such columns exist or not."""
    names, features = schema.names, options.get("features") or about.get("features")
    usual = next((c for c in IMAGE if c in names), None)
    record = _record(options, names, bool(features or usual or options.get("passage")))
    target, labels = (targets.names_of(options.get(n)) for n in ("target", "labels"))
    item, passage = options.get("item"), options.get("passage")
    other = bool(item or passage)
    label = None if other or target or labels else options.get("label", "label")
    if label not in names and "label" not in options and any(options.get(n) for n in regions.OPTIONS):
        label = None  # a picture of several things is of no class
    if options.get("boxes"):
        label = None
    messages = options.get("messages")
    if not (
        messages
        or other
        or features
        or usual
        or record["response"]
        or any(n in options for n in ("image", "text", "one_hot"))
    ):
        messages = next((n for n in chat.COLUMNS if n in names and chat.is_chat(schema.field(n).type)), None)
    if label and (record["response"] or messages) and "label" not in options:
        label = next((n for n in instruct.LABELS if n in names), None)
    text = options.get("text")
    one_hot = tuple(options.get("one_hot") or ())
    found = other or features or record["response"] or messages or usual or "image" in options
    if not text and not (found or one_hot):
        text = next((t for t in TEXT if t in names), None)
    named = {n: options.get(n, n if n in names else None) for n in ("client", "domain", "split")}
    target_columns = {label, *named.values(), *target, *labels, *one_hot}
    target_columns |= {c for n in options.get("columns", {}).values() for c in targets.names_of(n)}
    if by_type := not (found or text):
        features = _numeric(schema, target_columns) or None
    shape = options.get("shape")
    if not shape and "height" in about:
        shape = [about["height"], about["width"], about.get("channels", 1)]
    return Columns(
        label=label,
        image=options.get("image")
        or (None if other or features or text or record["response"] or messages or one_hot else usual or "image"),
        text=text,
        **record,
        features=None if other else features,
        **named,
        shape=shape,
        label_names=tuple(map(str, about.get("label_names") or ())),
        target=target,
        labels=labels,
        item=item,
        time=options.get("time"),
        question=options.get("question"),
        passage=passage,
        messages=messages,
        **{n: options.get(n) for n in regions.OPTIONS},
        one_hot=one_hot,
        by_type=by_type,
        further={n: targets.names_of(c) for n, c in options.get("columns", {}).items()},
    )


def _numeric(schema: pa.Schema, others: set[str | None]) -> list[str]:
    """Return the columns of numbers that are nothing else; none where some column is neither numbers nor text, which may be the rows'."""
    import pyarrow as pa

    rest = [f for f in schema if f.name not in others]
    kinds = {f.name: kind_of(f.type) for f in rest}
    if not {*kinds.values()} <= {"whole numbers", "numbers", "text", "nothing"} or len(set(schema.names)) < len(
        schema.names
    ):
        return []
    return [
        f.name for f in rest if kinds[f.name] in ("whole numbers", "numbers") and not pa.types.is_dictionary(f.type)
    ]


def _record(options: dict[str, Any], names: Sequence[str], other: bool) -> dict[str, Any]:
    """Return the columns of instruction, input and response, each None where the table holds no instructions.

    other: whether the rows are something else by their own columns.
    """
    found = {n: options.get(n) or next((c for c in usual if c in names), None) for n, usual in instruct.COLUMNS.items()}
    other = other or any(n in options for n in ("image", "text"))
    if "response" in options or (found["instruction"] and found["response"] and not other):
        return {**found, "instruction": found["instruction"] or instruct.COLUMNS["instruction"][0]}
    return dict.fromkeys(found)


def _type_problem(option: str, field: pa.Field, use: Columns, file: str) -> str | None:
    """Return why a column of this type is not what it is named for."""
    import pyarrow as pa

    kind, where = kind_of(field.type), f"task.data.{option}: column {field.name!r} of {file} is {field.type}, allowed: "
    if option == "label":
        return columns.label_problem(field.type, field.name, file)
    if option == "image":
        return _image_problem(field, use.shape, file)
    if option == "features":
        numbers = kind in ("whole numbers", "numbers", "nothing") and not pa.types.is_dictionary(field.type)
        return None if numbers else where + "numbers"
    if option in regions.OPTIONS:
        return regions.type_problem(option, field, file)
    if option == "messages":
        return None if chat.is_chat(field.type) else where + "lists of {role, content}, or of {from, value}"
    if option == "one_hot":
        return None if kind in ("text", "whole numbers", "nothing") else where + "text or whole numbers"
    if option == "time":
        return None if kind in ("whole numbers", "numbers") else where + "numbers"
    if option in ("target", "labels") or option.startswith("columns."):
        return targets.type_problem(option, field, len(use.labels) == 1, file)
    if option in ("text", "question", "passage", *instruct.FIELDS):
        return None if kind in ("text", "nothing") else where + "text"
    return None if kind in ("text", "whole numbers", "numbers", "nothing") else where + "text or numbers"


def _image_problem(field: pa.Field, shape: Sequence[int] | None, file: str) -> str | None:
    """Return what is wrong with a column of images: its type, or its bytes against the shape."""
    import pyarrow as pa

    if pa.types.is_fixed_size_binary(field.type):
        expected, size = int(np.prod(shape or 0)), field.type.byte_width
        if not shape:
            return (
                "task.data.shape: missing; images need [height, width, channels] where the file does not say them, "
                f"{file} does not"
            )
        return (
            None
            if size == expected
            else f"task.data.shape: {shape} is {expected} bytes, the images of {file} have {size}"
        )
    if pictures.is_bytes(field.type) or pictures.is_file(field.type) or pictures.is_array(field.type):
        return None
    return (
        f"task.data.image: column {field.name!r} of {file} is {field.type}, allowed: raw bytes, encoded pictures, or arrays of "
        "numbers"
    )
