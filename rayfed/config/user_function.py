"""A user's own function as data or model: `path/to/file.py:function`."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Any

from rayfed.config.own_errors import describe
from rayfed.config.user_code import content, load_file
from rayfed.errors import ConfigError, nearest


def check_function(name: str, setting: str, options: Collection[str], given: int) -> list[str]:
    """Return what is wrong with path/to/file.py:function, read from the text: the file is not run, so nothing it imports is loaded.

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


def _run(file: str, setting: str) -> Any:
    """Run a file and return its module. ConfigError where it is not there or fails."""
    if content(file) is None:
        raise ConfigError(f"{setting}: file {file!r} does not exist")
    try:
        module = load_file(file)
    except Exception as e:
        raise ConfigError(f"{setting}: {file} cannot be imported: {describe(e)}") from e
    return module


def load_function(name: str, setting: str) -> Any:
    """Return the callable behind path/to/file.py:function; runs the file. ConfigError names what is missing."""
    file, _, attribute = name.rpartition(":")
    module = _run(file, setting)
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


def load_class(name: str, base: type, setting: str) -> Any:
    """Return the class behind path/to/file.py:Class, a subclass of `base`; runs the file. ConfigError names what is missing."""
    file, _, attribute = name.rpartition(":")
    module = _run(file, setting)
    known = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base]
    if attribute not in known:
        has = ", ".join(known) or "none"
        raise ConfigError(
            f"{setting}: {file} has no {base.__name__} named {attribute!r}{nearest(attribute, known)}; it has: {has}"
        )
    return vars(module)[attribute]
