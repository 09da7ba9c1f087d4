"""A user's own function: `path/to/file.py:function`, called as function(seed, **options)."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.config.user_code import content, load_file
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Named


def problems(name: str, setting: str, options: Collection[str], given: int) -> list[str]:
    """What is wrong with path/to/file.py:function, read from the text: the file is not run, so nothing it imports is loaded.

    given: positional arguments that rayfed passes; options: names that are passed by keyword.
    """
    file, _, attribute = name.rpartition(":")
    if not file.endswith(".py"):
        return [f"{setting}: {name!r} found, needed: path/to/file.py:function"]
    text = content(file)
    if text is None:
        return [f"{setting}: file {file!r} does not exist"]
    try:
        body = ast.parse(text).body
    except (SyntaxError, UnicodeDecodeError, ValueError) as e:
        return [f"{setting}: {file} is not readable as Python: {e}"]
    functions = {n.name: n for n in body if isinstance(n, ast.FunctionDef)}
    if attribute not in functions:
        others = {n.id for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.Name)}
        others |= {n.name for n in body if isinstance(n, ast.ClassDef)}
        others |= {a.asname or a.name for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
        if attribute in others or "*" in others:  # made in another way: seen when it is called
            return []
        known = ", ".join(functions) or "none"
        return [f"{setting}: {file} has no function {attribute!r}{nearest(attribute, functions)}; it has: {known}"]
    a = functions[attribute].args
    positional = [x.arg for x in (*a.posonlyargs, *a.args)]
    if len(positional) < given and a.vararg is None:
        return [f"{setting}: {name} takes {len(positional)} arguments, it is called with {given} and the options"]
    accepted = [*positional[given:], *(x.arg for x in a.kwonlyargs)]
    found = []
    if a.kwarg is None:
        found += [
            f"{setting}.{o}: unknown option of {name}{nearest(o, accepted)}; known: {', '.join(accepted) or 'none'}"
            for o in options
            if o not in accepted
        ]
    needed = positional[given : len(positional) - len(a.defaults)]
    needed += [x.arg for x, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d is None]
    return found + [f"{setting}.{o}: missing, {name} needs it" for o in needed if o not in options]


def function(name: str, setting: str) -> Any:
    """The callable behind path/to/file.py:function; runs the file. ConfigError naming what is missing."""
    file, _, attribute = name.rpartition(":")
    if content(file) is None:
        raise ConfigError(f"{setting}: file {file!r} does not exist")
    try:
        module = load_file(file)
    except Exception as e:
        raise ConfigError(f"{setting}: {file} cannot be imported: {type(e).__name__}: {e}") from e
    found = vars(module).get(attribute)
    if not callable(found):
        known = [
            n
            for n, f in vars(module).items()
            if callable(f) and getattr(f, "__module__", None) == vars(module)["__name__"]
        ]
        has = ", ".join(known) or "none"
        raise ConfigError(f"{setting}: {file} has no function {attribute!r}{nearest(attribute, known)}; it has: {has}")
    return found


def check(spec: Named) -> list[str]:
    return problems(spec.name, "task.data", spec.options, 1)


def load(spec: Named, seed: int) -> Dataset:
    """What the function returns, with its arrays checked. An error inside it stays the cause of the ConfigError."""
    call = function(spec.name, "task.data")
    try:
        made = call(seed, **spec.options)
    except ConfigError:
        raise
    except Exception as e:
        raise ConfigError(f"task.data: {spec.name} raised {type(e).__name__}: {e}") from e
    if not isinstance(made, Dataset):
        raise ConfigError(f"task.data: {spec.name} returned {type(made).__name__}, needed: rayfed.data.Dataset")
    wrong = [f"task.data: {spec.name}: {p}" for p in _wrong(made)]
    if wrong:
        raise ConfigError(wrong)
    train, test = (
        Part(np.ascontiguousarray(p.x, np.float32), np.ascontiguousarray(p.y, np.int64), p.client, p.domain, p.split)
        for p in (made.train, made.test)
    )
    notes = tuple(map(str, made.notes))
    return Dataset(made.name, train, test, int(made.classes), tuple(map(str, made.label_names)), made.kind, notes)


def _wrong(d: Dataset) -> list[str]:
    out = []
    if d.kind not in ("image", "tabular"):
        out.append(f"kind {d.kind!r} found, allowed: image, tabular")
    if not len(d.train.y):
        out.append("it has no training rows")
    if len(d.label_names) != d.classes:
        out.append(f"{len(d.label_names)} label names for {d.classes} classes")
    for which, p in (("train", d.train), ("test", d.test)):
        x, y = np.asarray(p.x), np.asarray(p.y)
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "iu" or y.ndim != 1 or len(x) != len(y):
            out.append(
                f"{which}: x {x.dtype} {x.shape} and y {y.dtype} {y.shape} found, needed: numbers (n, ...) and whole numbers (n,)"
            )
        elif x.shape[1:] != np.shape(d.train.x)[1:] or x.ndim < 2 or (d.kind == "image" and x.ndim != 4):
            out.append(f"{which}: x of shape {x.shape} found, needed: (n, C, H, W) for images, (n, features) otherwise")
        elif len(y) and (y.min() < 0 or y.max() >= d.classes):
            out.append(f"{which}: labels {y.min()} to {y.max()} found, allowed: 0 to {d.classes - 1}")
        out += [
            f"{which}.{n}: {len(a)} values for {len(y)} rows"
            for n, a in (("client", p.client), ("domain", p.domain), ("split", p.split))
            if a is not None and len(a) != len(y)
        ]
    return out
