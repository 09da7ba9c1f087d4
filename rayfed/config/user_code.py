"""Own code in a config: `path/to/file.py:Name`, and classes and functions given as such from a Python session.

What a session defines in no file (a notebook's cell, a script) is written down with all that it uses, under a name that
holds the digest of its text: `code/Ditto-3f0c....py:Ditto`. The text goes into the run folder's `code/`, so that the run
can be resumed, and to the actors.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import inspect
import linecache
import re
import symtable
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from rayfed.config.own_errors import contained
from rayfed.config.watchdog import say_if_slow
from rayfed.errors import ConfigError

FOLDER = "code"  # within a run's or a study's folder
WRITTEN = re.compile(rf"{FOLDER}/\w+-([0-9a-f]{{12}})\.py")
FILE = re.compile(r"(.+\.py):\w+")
LITERAL = 100_000  # characters of a session's constant that is written down

_texts: dict[str, bytes] = {}  # path as in a config -> content, of files that need not be on this machine's disk


# -- content by path -----------------------------------------------------------------------------------------------------


def content(file: str | Path) -> bytes | None:
    """Return the content of the file of `path/to/file.py:Name`; None if there is no such file."""
    known = _texts.get(str(file))
    if known is not None:
        return known
    path = Path(file).expanduser()
    return path.read_bytes() if path.is_file() else None


def used(config: Any) -> dict[str, bytes]:
    """Return path -> content of all own code that a config (plain values) names."""
    if isinstance(config, Mapping | list | tuple):
        inner = config.values() if isinstance(config, Mapping) else config
        return {path: text for value in inner for path, text in used(value).items()}
    found = FILE.fullmatch(config) if isinstance(config, str) else None
    text = content(found[1]) if found else None
    return {} if found is None or text is None else {found[1]: text}


def written(config: Any) -> dict[str, bytes]:
    """Return the part of `used` that is in no file of the user's and belongs into the run's folder."""
    return {path: text for path, text in used(config).items() if WRITTEN.fullmatch(path)}


def install(texts: Mapping[str, bytes]) -> None:
    """Register this content in this process (what `used` returned in another one)."""
    _texts.update(texts)


def adopt(folder: Path) -> None:
    """Register what is in the `code/` of a run's or a study's folder. ConfigError if a file is not what it was."""
    for file in sorted((folder / FOLDER).glob("*.py")):
        name = f"{FOLDER}/{file.name}"
        if (found := WRITTEN.fullmatch(name)) is None:
            continue
        text = file.read_bytes()
        if _digest(text) != found[1]:
            raise ConfigError(
                f"{file} was changed after the run was made (its name holds the digest of what it was); "
                f"to run other code, copy it elsewhere and name it path/to/file.py:{file.name.partition('-')[0]}"
            )
        _texts[name] = text


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=6).hexdigest()


# -- classes and functions as names --------------------------------------------------------------------------------------


def named(config: Any, where: str = "") -> Any:
    """Return a config whose classes and functions are replaced by their names. ConfigError lists those that cannot be."""
    problems: list[str] = []
    made = _named(config, where, problems)
    if problems:
        raise ConfigError(problems)
    return made


def _named(value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {k: _named(v, f"{where}.{k}" if where else str(k), problems) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_named(v, f"{where}.{i}", problems) for i, v in enumerate(value)]
    if not isinstance(value, type | FunctionType):
        return value
    try:
        return name_of(value, where)
    except ConfigError as e:
        problems += e.problems
        return None


def name_of(thing: type | FunctionType, setting: str) -> str:
    """Return the config's name of a class or function: `fedavg`, `/path/file.py:Name`, or `code/Name-DIGEST.py:Name` for one of the
    session, whose text is known from then on. ConfigError naming what cannot be written down."""
    name = thing.__name__
    if name == "<lambda>" or thing.__qualname__ != name:
        kind = "a lambda" if name == "<lambda>" else f"{thing.__qualname__} is defined inside a function or a class"
        raise ConfigError(f"{setting}: {kind}; define it with a name at the top level of a cell or a file")
    package, _, last = thing.__module__.rpartition(".")
    if package == "rayfed.methods":
        return last
    file = getattr(sys.modules.get(thing.__module__), "__file__", None)
    if thing.__module__ != "__main__" and file and file.endswith(".py") and Path(file).is_file():
        return f"{Path(file).resolve()}:{name}"
    text = _Writer(setting, name).text(thing).encode()
    path = named_text(name, text)
    _texts[path] = text
    return f"{path}:{name}"


def named_text(stem: str, text: bytes) -> str:
    """Return the path of code that is in no file of the user's: `code/STEM-DIGEST.py`."""
    return f"{FOLDER}/{stem}-{_digest(text)}.py"


class _Writer:
    """Source of a session's class or function with its imports, constants, helpers and bases, in an order that runs."""

    def __init__(self, setting: str, root: str):
        self.setting, self.root = setting, root
        self.imports: dict[str, None] = {}
        self.parts: dict[str, str] = {}
        self.problems: list[str] = []
        self.future = False

    def text(self, thing: Any) -> str:
        self._define(self.root, thing, vars(sys.modules.get(thing.__module__, builtins)))
        if self.problems:
            raise ConfigError(self.problems)
        head = [f'"""`{self.root}` of a Python session, with what it uses."""']
        head += ["from __future__ import annotations"] if self.future else []
        head += ["\n".join(sorted(self.imports))] if self.imports else []
        return "\n\n".join([*head, *(p for p in self.parts.values() if p)]) + "\n"

    def _define(self, name: str, thing: Any, around: Mapping[str, Any]) -> None:
        thing = inspect.unwrap(thing)
        codes = list(_codes(thing))
        around = next((g for _, g in codes), around)  # a session's names, also where it is not a module itself
        source = _source(thing, [c for c, _ in codes])
        if source is None:
            self.problems.append(
                f"{self.setting}: the source of {thing.__name__} cannot be had (typed at a prompt that keeps none?); "
                f"write it into a file and name it path/to/file.py:{self.root}"
            )
            return
        # CO_FUTURE_ANNOTATIONS: the names in annotations are the same, but they are not evaluated
        self.future |= any(c.co_flags & 0x1000000 for c, _ in codes)
        self.parts[name] = ""  # it comes after what it uses
        module = ast.parse(source)
        for used in sorted(_globals(symtable.symtable(source, name, "exec"))):
            if used in self.parts or used not in around or used == "__name__":
                continue
            self._bind(used, around[used], module, around)
        del self.parts[name]
        self.parts[name] = source if thing.__name__ == name else f"{source}\n{name} = {thing.__name__}"

    def _bind(self, name: str, value: Any, module: ast.Module, around: Mapping[str, Any]) -> None:
        """Make `name` mean in the written file what it means in the session."""
        if isinstance(value, ModuleType) and value.__name__ != "__main__":
            path, _, last = value.__name__.rpartition(".")
            bare = f"from {path} import {last}" if path else f"import {last}"
            self.imports[bare if name == last else f"{bare} as {name}"] = None
            for chain in _chains(module, name):  # `import a.b` binds only a
                inner = f"{value.__name__}.{chain}"
                if inner in sys.modules and name == value.__name__:
                    self.imports[f"import {inner}"] = None
            return
        home, its = getattr(value, "__module__", None), getattr(value, "__name__", None)
        if home in ("__main__", around.get("__name__")):
            if isinstance(inspect.unwrap(value), type | FunctionType):
                return self._define(name, value, around)
        elif isinstance(home, str) and isinstance(its, str) and _has(home, its, value):
            self.imports[f"from {home} import {its}" + ("" if its == name else f" as {name}")] = None
            return
        if (literal := _literal(value)) is not None:
            self.parts[name] = f"{name} = {literal}"
            return
        for found in (str(home), *sorted(sys.modules)):  # objects that do not know their name, or where they come from
            if _has(found, name, value) and vars(sys.modules[found]) is not around:
                self.imports[f"from {found} import {name}"] = None
                return
        self.problems.append(
            f"{self.setting}: {self.root} uses {name} ({type(value).__name__}) of the session, which cannot be written into a file; "
            "make or read it inside, or pass it as a setting"
        )


def _has(module: str, name: str, value: Any) -> bool:
    """Return whether `from module import name` gives this very object."""
    return module != "__main__" and getattr(sys.modules.get(module), "__dict__", {}).get(name) is value


def _literal(value: Any) -> str | None:
    """Return the value as Python text that means the same; None if there is none."""
    text = (
        repr(value) if isinstance(value, int | float | complex | str | bytes | tuple | list | set | dict | None) else ""
    )
    try:
        same = bool(text) and len(text) <= LITERAL and ast.literal_eval(text) == value
    except (ValueError, SyntaxError, TypeError):
        return None
    return text if same else None


def _codes(thing: Any) -> Iterator[tuple[CodeType, Mapping[str, Any]]]:
    """Yield (code, globals) of a function, or of what a class defines itself."""
    if isinstance(thing, FunctionType):
        yield thing.__code__, thing.__globals__
        return
    for member in vars(thing).values():
        inner = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        nested = isinstance(inner, type) and inner.__qualname__.startswith(f"{thing.__qualname__}.")
        if isinstance(inner, FunctionType) and inner.__qualname__.startswith(f"{thing.__qualname__}."):
            yield from _codes(inspect.unwrap(inner))
        elif nested and inner is not thing:
            yield from _codes(inner)


def _source(thing: Any, codes: list[CodeType]) -> str | None:
    """Return the statement that defines it, from the cell or file in which Python compiled it."""
    line = min((c.co_firstlineno for c in codes), default=None)
    if codes:
        files = [codes[0].co_filename]
    else:  # a class without functions: the newest cell that defines one of its name
        own = getattr(sys.modules.get(thing.__module__), "__file__", None)
        known = {getattr(m, "__file__", None) for m in list(sys.modules.values())} - {own}
        files = [*([own] if own else []), *(f for f in reversed(list(linecache.cache)) if f not in known)]
    kind: Any = ast.ClassDef if isinstance(thing, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
    for file in files:
        lines = linecache.getlines(file)
        try:
            module = ast.parse("".join(lines))
        except (SyntaxError, ValueError):
            continue
        for node in reversed([n for n in ast.walk(module) if isinstance(n, kind) and n.name == thing.__name__]):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            end = node.end_lineno or first
            if line is None or first <= line <= end:
                return textwrap.dedent("".join(lines[first - 1 : end])).rstrip()
    return None


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Return names that a text reads from its module."""
    top = table.get_type() == "module"
    found = {
        s.get_name()
        for s in table.get_symbols()
        if s.is_referenced() and (not s.is_assigned() and not s.is_imported() if top else s.is_global())
    }
    for inner in table.get_children():
        found |= _globals(inner)
    return found


def _chains(module: ast.Module, name: str) -> set[str]:
    """Return `b` and `b.c` of every `name.b.c` in a text."""
    found: set[str] = set()
    for node in ast.walk(module):
        path: list[str] = []
        at: Any = node
        while isinstance(at, ast.Attribute):
            path.insert(0, at.attr)
            at = at.value
        if path and isinstance(at, ast.Name) and at.id == name:
            found.add(".".join(path))
    return found


def load_file(file: str | Path) -> ModuleType:
    """Import a user's file under a name of its own, once per content. FileNotFoundError; what the file raises, see `contained`."""
    path = Path(file).expanduser()
    text = content(file)
    if text is None:
        raise FileNotFoundError(f"{file} does not exist")
    try:
        where = path.resolve()
    except FileNotFoundError:  # the working directory was removed
        where = path
    name = f"rayfed_user_{path.stem}_{_digest(text + str(where).encode())}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    code = compile(text, str(path), "exec")
    if str(file) in _texts:  # tracebacks show its lines, though it may be in no file here
        linecache.cache[str(path)] = (len(text), None, text.decode().splitlines(keepends=True), str(path))
    sys.modules[name] = module
    try:
        with contained(), say_if_slow(f"the import of {path}"):
            exec(code, vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module
