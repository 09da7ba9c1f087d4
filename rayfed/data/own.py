"""A user's own function: `path/to/file.py:function`, called as function(seed, **options)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.config.own_errors import contained, describe
from rayfed.config.user_function import check_function, load_function
from rayfed.config.watchdog import say_if_slow
from rayfed.data import RESERVED, Dataset, Part, chat, modalities, pictures
from rayfed.data.columns import EXACT
from rayfed.data.table import SPLITS
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named

KINDS = ("image", "tabular", "text", "instruct", "items", "pairs", "modalities")


def check(spec: Named) -> list[str]:
    return check_function(spec.name, "task.data", spec.options, 1)


def load(spec: Named, seed: int) -> Dataset:
    """Return what the function returns, with its arrays checked. An error inside it stays the cause of the ConfigError."""
    call = load_function(spec.name, "task.data")
    try:
        with contained(), say_if_slow(f"task.data: {spec.name}"):
            made = call(seed, **spec.options)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"task.data: {spec.name} raised {describe(e)}") from e
    if not isinstance(made, Dataset):
        raise ConfigError(f"task.data: {spec.name} returned {type(made).__name__}, needed: rayfed.data.Dataset")
    try:
        return checked(made)
    except ConfigError as e:
        raise ConfigError([f"task.data: {spec.name}: {p}" for p in e.problems]) from None


def checked(d: Dataset) -> Dataset:
    """Return the data set with arrays of the types that `rayfed.data.Part` promises. ConfigError lists what is wrong with it.

    Images are scaled by their type (uint8 by 255, uint16 by 65,535), all other numbers stay. x of kind text is texts (n,), or
    token ids (n, L) from 0, -1 for padding; of kind instruct it is instruction, input and response (n, 3), or chats, lists of {role,
    content}.
    """
    if d.kind not in KINDS:
        raise ConfigError(f"kind {d.kind!r} found{nearest(str(d.kind), KINDS)}, allowed: {', '.join(KINDS)}")
    if not isinstance(d.classes, int | np.integer) or isinstance(d.classes, bool) or d.classes < 1:
        raise ConfigError(f"classes {d.classes!r} found, allowed: a whole number >= 1")
    if isinstance(d.label_names, str) or not np.iterable(d.label_names):
        raise ConfigError(f"label_names {d.label_names!r} found, needed: a name for each class")
    names = tuple(map(str, d.label_names))
    problems = [] if len(names) == d.classes else [f"{len(names)} label names for {d.classes} classes"]
    parts = {}
    for which, part in (("train", d.train), ("test", d.test)):
        try:
            parts[which] = _arrays(_chats(part, which) if d.kind == "instruct" else part, which)
            if which == "test" and "train" in parts and not parts["test"].x.size and not parts["test"].y.size:
                parts["test"] = _none_of(parts["train"])  # an empty list has no shape
            _check_shape(parts[which], which, d.kind, parts.get("train", parts[which]))
            _check_targets(parts[which].y, which, int(d.classes), parts.get("train", parts[which]).y)
            _check_columns(parts[which], which)
            _check_further(parts[which], which, parts.get("train", parts[which]))
            if d.kind == "modalities" and (wrong := modalities.problems(parts[which].x, d.modalities, which)):
                raise ConfigError(wrong)
            _check_values(parts[which].x, which, d.kind)
        except ConfigError as e:
            problems += e.problems
    if not problems and not len(parts["train"].y):
        problems.append("it has no training rows")
    if problems:
        raise ConfigError(problems)
    train, test = parts["train"], parts["test"]
    xs, notes = _typed([train.x, test.x], d.kind, str(d.name))
    train, test = (replace(p, x=x, columns=_typed_columns(p)) for p, x in zip((train, test), xs, strict=True))
    notes = [*map(str, d.notes or ()), *notes]
    return Dataset(str(d.name), train, test, int(d.classes), names, d.kind, tuple(notes), tuple(d.modalities))


def _none_of(part: Part) -> Part:
    """Return a part without rows, of the shapes of another."""
    return Part(part.x[:0], part.y[:0], columns={n: a[:0] for n, a in part.columns.items()})


def _chats(part: Any, which: str) -> Any:
    """Return a part of chats, rows of messages {role, content}, with x (n, 1) as `rayfed.data.chat` has it; any other part as it is."""
    first = next(iter(part.x), None) if isinstance(part, Part) and np.iterable(part.x) else None
    if isinstance(first, str) or not np.iterable(first) or not all(isinstance(m, Mapping) for m in first):
        return part
    made = np.empty((len(part.x), 1), object)
    for row, messages in enumerate(part.x):
        if isinstance(messages, str) or not np.iterable(messages) or not all(isinstance(m, Mapping) for m in messages):
            raise ConfigError(
                f"{which}: row {row} is no list of messages {{role: TEXT, content: TEXT}}, as the rows before it are"
            )
        made[row, 0] = chat.record(list(messages), f"{which}: row {row}")
    return replace(part, x=made)


def _arrays(part: Any, which: str) -> Part:
    """Return a part of arrays, whatever it is made of: lists, tensors, columns of another library."""
    if not isinstance(part, Part):
        raise ConfigError(f"{which}: {type(part).__name__} found, needed: rayfed.data.Part")
    found: dict[str, Any] = {}
    for n in ("x", "y", "client", "domain", "split"):
        value = getattr(part, n)
        try:
            found[n] = None if value is None and n not in "xy" else np.asarray(value)
        except Exception as e:  # ragged lists, tensors that need a gradient or are not on the CPU
            raise ConfigError(f"{which}.{n}: {type(value).__name__} is no array: {type(e).__name__}: {e}") from None
    for n in ("client", "domain", "split"):
        if found[n] is not None and found[n].ndim == 1:
            found[n] = np.array([*("" if v is None else str(v) for v in found[n]), ""], dtype=str)[:-1]
    found["columns"] = {}
    for n, value in dict(part.columns).items():
        try:
            found["columns"][str(n)] = np.asarray(value)
        except Exception as e:
            raise ConfigError(
                f"{which}.columns.{n}: {type(value).__name__} is no array: {type(e).__name__}: {e}"
            ) from None
    return Part(**found)


def _check_shape(part: Part, which: str, kind: str, first: Part) -> None:
    x, y = part.x, part.y
    if y.dtype == object and y.ndim == 1 and any(np.ndim(v) for v in y):
        raise ConfigError(f"{which}: y {y.dtype} {y.shape} holds lists, one label a row is needed")
    words = (kind == "text" and x.dtype.kind in "OU") or kind == "instruct"
    if x.dtype.kind not in (
        "OU" if words else "iu" if kind in ("text", "items", "pairs") else "fiub"
    ) or y.dtype.kind not in ("iu" if kind == "instruct" else "fiub"):
        needed = {"text": "texts (n,) or token ids (n, length)", "instruct": "texts (n, 3), or lists of messages"}.get(
            kind, "numbers (n, ...)"
        )
        raise ConfigError(
            f"{which}: x {x.dtype} {x.shape} and y {y.dtype} {y.shape} found, needed: {needed} and whole numbers (n,)"
        )
    if y.ndim not in (1, 2) or not x.ndim or len(x) != len(y) or (y.ndim == 1 and y.dtype.kind == "b"):
        raise ConfigError(
            f"{which}: x {x.dtype} {x.shape} and y {y.dtype} {y.shape} found, needed: numbers (n, ...) and whole numbers (n,)"
        )
    dims = {"image": 4, "text": 1 if words else 2, "instruct": 2, "pairs": 3}.get(kind, max(x.ndim, 2))
    same = x.shape[1:] == first.x.shape[1:] or (kind == "text" and x.ndim == first.x.ndim)
    if not same or x.ndim != dims or 0 in x.shape[1:] or (kind == "instruct" and x.shape[1] not in (1, 3)):
        needed = {
            "text": "(n,) for texts, (n, length) for token ids",
            "instruct": "(n, 3) for instructions, lists of messages for chats",
        }.get(kind, "(n, C, H, W) for images, (n, features) otherwise")
        raise ConfigError(f"{which}: x of shape {x.shape} found, needed: {needed}")


def _check_targets(y: np.ndarray, which: str, classes: int, first: np.ndarray) -> None:
    """Refuse targets that are neither a class, nor labels, nor numbers, or that are something else than those of the training rows."""
    if (y.ndim, y.dtype.kind == "f") != (first.ndim, first.dtype.kind == "f"):
        raise ConfigError(
            f"{which}: y {y.dtype} {y.shape} found, that of train is {first.dtype} {first.shape}; allowed: the same"
        )
    if y.ndim == 1 and y.dtype.kind in "iu":
        return _check_labels(y, which, classes)
    if (1 if y.ndim == 1 else y.shape[1]) != classes:
        raise ConfigError(
            f"{which}: y {y.dtype} {y.shape} and {classes} classes found, needed: whole numbers (n,) for classes, (n, classes) of 0 or 1 "
            "for several labels a row, floats (n, classes) for numbers (one of them: (n,) and classes 1)"
        )
    wrong = ~np.isfinite(y) if y.dtype.kind == "f" else (y != 0) & (y != 1)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
        allowed = "finite numbers" if y.dtype.kind == "f" else "0 or 1; what is not known is 0 in a column `mask`"
        raise ConfigError(f"{which}: y of row {row} is {y[row].tolist()}, allowed: {allowed}")


def _check_further(part: Part, which: str, first: Part) -> None:
    """Refuse further columns that no batch can carry."""
    problems = []
    if part.columns.keys() != first.columns.keys():
        problems.append(
            f"{which}.columns: {', '.join(part.columns) or 'none'} found, train has: {', '.join(first.columns) or 'none'}"
        )
    for n, a in part.columns.items():
        if not n.isidentifier() or n in RESERVED:
            problems.append(
                f"{which}.columns.{n}: a name found that no column can have; allowed: letters, digits and _, not {', '.join(RESERVED)}"
            )
        elif a.dtype.kind not in "fiub" or a.ndim < 1 or len(a) != len(part.y):
            problems.append(f"{which}.columns.{n}: {a.dtype} {a.shape} found, needed: numbers ({len(part.y)}, ...)")
        elif n in first.columns and a.shape[1:] != first.columns[n].shape[1:]:
            problems.append(f"{which}.columns.{n}: shape {a.shape} found, that of train is {first.columns[n].shape}")
        elif a.dtype.kind == "f" and not np.isfinite(a).all():
            problems.append(
                f"{which}.columns.{n}: NaN or infinity found, allowed: finite numbers; what is absent is 0 in one more column"
            )
    if problems:
        raise ConfigError(problems)


def _check_labels(y: np.ndarray, which: str, classes: int) -> None:
    if len(y) and (y.min() < 0 or y.max() >= classes):
        row = int(np.argmax((y < 0) | (y >= classes)))
        raise ConfigError(
            f"{which}: labels {y.min()} to {y.max()} found, allowed: 0 to {classes - 1} (first: row {row})"
        )


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _check_columns(part: Part, which: str) -> None:
    problems = []
    for n, a in (("client", part.client), ("domain", part.domain), ("split", part.split)):
        if a is not None and (a.ndim != 1 or len(a) != len(part.y)):
            problems.append(f"{which}.{n}: {len(a) if a.ndim else 1} values for {len(part.y)} rows")
        elif a is not None and not all(map(_is_utf8, np.unique(a))):
            problems.append(f"{which}.{n}: it holds text that UTF-8 cannot write (a lone surrogate)")
        elif n == "split" and a is not None and (unknown := sorted({*a.tolist()} - {*SPLITS})):
            problems.append(
                f"{which}.split: {unknown[0]!r} found{nearest(unknown[0], SPLITS)}, allowed: {', '.join(SPLITS)}"
            )
    if problems:
        raise ConfigError(problems)


def _check_values(x: np.ndarray, which: str, kind: str) -> None:
    """Refuse the first value that no model can be given."""
    if x.dtype.kind in "OU":
        bad = next(((r, v) for r, row in enumerate(x) for v in np.atleast_1d(row) if not isinstance(v, str)), None)
        if bad:
            raise ConfigError(f"{which}: row {bad[0]} holds {type(bad[1]).__name__}, needed: texts")
        broken = next((r for r, row in enumerate(x) for v in np.atleast_1d(row) if not _is_utf8(v)), None)
        if broken is not None:
            raise ConfigError(f"{which}: row {broken} holds text that UTF-8 cannot write (a lone surrogate)")
        return
    if kind == "text":
        wrong, allowed = (x < -1) | (x >= 2**31), "token ids from 0, and -1 for padding"
    elif x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            wrong, allowed = ~np.isfinite(x.astype(np.float32)), "finite numbers that float32 holds"
    elif x.dtype.kind in "iu":
        wrong, allowed = (x > EXACT) | (x < -EXACT), "whole numbers up to 2^53"
    else:
        return
    if wrong.any():
        first = [int(i) for i in np.argwhere(wrong)[0]]
        count = int(wrong.any(axis=tuple(range(1, x.ndim))).sum())
        raise ConfigError(
            f"{which}: row {first[0]} holds {x[tuple(first)]} at {', '.join(map(str, first[1:]))} ({count} such rows in all), "
            f"allowed: {allowed}"
        )


def _typed_columns(part: Part) -> dict[str, np.ndarray]:
    """Return further columns as float32, whole numbers as int64."""
    return {n: a.astype(np.int64 if a.dtype.kind in "iu" else np.float32) for n, a in part.columns.items()}


def _typed(xs: list[np.ndarray], kind: str, name: str) -> tuple[list[np.ndarray], list[str]]:
    """Return (x of both parts in the types that `Part` promises, notes)."""
    if xs[0].dtype.kind in "OU":
        return [np.array([*x.reshape(-1), None], object)[:-1].reshape(x.shape) for x in xs], []
    if kind == "text":
        width = max(x.shape[1] for x in xs)
        ids = [np.pad(x.astype(np.int64), ((0, 0), (0, width - x.shape[1])), constant_values=-1) for x in xs]
        return [np.ascontiguousarray(x, np.int32) for x in ids], []
    if kind in ("items", "pairs"):
        return [np.ascontiguousarray(x, np.int32) for x in xs], []
    if kind != "image":
        return [np.ascontiguousarray(x, np.float32) for x in xs], []
    made, of = pictures.scaled(xs, name), xs[0].dtype.name
    notes = [f"the images of {name} are uint8 and were divided by 255"] if of == "uint8" else []
    return made, notes or pictures.type_notes(made, of, name)
