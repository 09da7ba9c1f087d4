"""What a user writes as a config, read within limits: YAML text, and values of any origin.

A config is small. Text of megabytes, hundreds of levels, and names that stand for a million copies are refused before they take
time or memory; whatever is within the limits means what YAML says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from rayfed.errors import ConfigError

BYTES = 1_000_000
LEVELS = 40
VALUES = 20_000
LARGEST = 2**63 - 1  # what a whole number of a config is at most
PLAIN = (str, int, float, bool, type(None), list, dict)
TOO_DEEP = f"nested in more than {LEVELS} levels"
TOO_MANY = f"more than {VALUES:,} values found, and a config has at most that; data belongs into files"


def read_file(path: Path, loader: type[Loader] | None = None) -> Any:
    """Return what a YAML file holds. ConfigError names the file, the line and what is wrong with it."""
    try:
        with path.open("rb") as f:
            content = f.read(BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from None
    if len(content) > BYTES:
        raise ConfigError(
            f"{path}: more than {BYTES:,} bytes found, and a config has at most that; data belongs into files"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise ConfigError(
            f"{path}: line {line}: not readable as YAML: byte {content[e.start]:#04x} is not UTF-8; save the file as UTF-8, e.g. "
            "iconv -f latin1 -t utf-8 where it is Latin-1"
        ) from None
    return parse(text, str(path), loader)


def parse(text: str, source: str, loader: type[Loader] | None = None) -> Any:
    """Return what YAML text says; source: what sentences call it. ConfigError with the line and what is wrong there."""
    try:
        return yaml.load(text, loader or Loader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        inside = f" ({e.context} that begins in line {e.context_mark.line + 1})" if e.context and e.context_mark else ""
        raise ConfigError(f"{source}: {where}not readable as YAML: {e.problem}{inside}") from None
    except yaml.YAMLError as e:  # a character that no YAML may hold
        line = text.count("\n", 0, getattr(e, "position", 0)) + 1
        raise ConfigError(f"{source}: line {line}: not readable as YAML: {str(e).splitlines()[0]}") from None


class Loader(yaml.SafeLoader):
    """YAML within the limits, whose mappings name each key once, by text or by whole numbers."""

    plain: tuple[type, ...] = PLAIN

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._values = 0
        self._anchors: list[str | None] = []  # of the values that the present one is inside of
        self._deepest = 0  # level that was reached since the present value began
        self._known: dict[str, tuple[int, int]] = {}  # anchor -> values and levels of what it names

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        anchor, mark = event.anchor, event.start_mark
        if self.check_event(yaml.AliasEvent):
            if anchor in self._anchors:
                raise ComposerError(None, None, f"*{anchor} is inside of the value that it names", mark)
            self._count(event, *self._known.get(anchor, (1, 1)))
            return super().compose_node(parent, index)
        before, deepest = self._values, self._deepest
        self._deepest = 0
        self._count(event, 1, 1)
        self._anchors.append(anchor)
        node = super().compose_node(parent, index)
        self._anchors.pop()
        if anchor is not None:
            self._known[anchor] = (self._values - before, self._deepest - len(self._anchors))
        self._deepest = max(deepest, self._deepest)
        return node

    def _count(self, event: Any, values: int, levels: int) -> None:
        """Count what begins at an event. ComposerError beyond the limits."""
        self._values += values
        self._deepest = max(self._deepest, len(self._anchors) + levels)
        if self._values > VALUES or self._deepest > LEVELS:
            raise ComposerError(None, None, TOO_DEEP if self._deepest > LEVELS else TOO_MANY, event.start_mark)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        try:
            made = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as e:  # of readers of dates and numbers
            raise ConstructorError(None, None, f"{_value(node)} is no {kind}: {e}", node.start_mark) from None
        if not isinstance(made, self.plain):
            raise ConstructorError(None, None, f"{_value(node)} is a {kind}; in quotes it is text", node.start_mark)
        return made

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            problem = f"{key!r} is given twice" if isinstance(key, str | int) and key in seen else key_problem([key])
            if problem:
                raise ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        if problem := key_problem(seen):
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def _value(node: Any) -> str:
    return repr(node.value) if isinstance(node.value, str) else "this"


def key_problem(keys: Collection[Any]) -> str:
    """Return what is wrong with the keys of a mapping: all are text, or all are whole numbers (`adapter.rank`); "" if nothing."""
    for key in keys:
        if isinstance(key, bool) or not isinstance(key, str | int):
            hint = " (yes, no, on and off are truth values in YAML)" if isinstance(key, bool) else ""
            return f"{key!r} found as a key{hint}, allowed: text, which may be in quotes"
    numbers = [k for k in keys if isinstance(k, int)]
    if numbers and any(isinstance(k, str) and not k.isdecimal() for k in keys):
        return f"{numbers[0]!r} found as a key among keys that are text, allowed: text, which may be in quotes"
    return ""


def check(config: Any, source: str) -> None:
    """Raise ConfigError for values that no config can have, of whatever origin: too deep or in a circle, too many of them, keys
    that are neither text nor whole numbers, numbers beyond 64 bits, and text with characters that no file takes.

    source: what sentences call the config.
    """
    waiting: list[tuple[Any, tuple[Any, ...]]] = [(config, ())]
    count = 0
    while waiting:
        value, path = waiting.pop()
        where = ".".join(map(str, path)) or source
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            if problem := key_problem(value.keys()):
                raise ConfigError(f"{where}: {problem}")
            inner = [(k, v) for k, v in value.items()]
            inner += [(k, k) for k in value if isinstance(k, str)]
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        elif isinstance(value, str):
            count += len(value) // 50  # long text counts as several
            if problem := _text_problem(value):
                raise ConfigError(f"{where}: {problem}")
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise ConfigError(f"{where}: a whole number of {value.bit_length()} bits found, allowed: at most {LARGEST}")
        count += 1
        if count + len(inner) + len(waiting) > VALUES:
            raise ConfigError(f"{source}: {TOO_MANY}")
        if inner and len(path) >= LEVELS:
            top = ".".join(map(str, path[:2]))
            raise ConfigError(f"{top}: {TOO_DEEP}, or inside of itself")
        waiting += [(v, (*path, k)) for k, v in inner]


def _text_problem(text: str) -> str:
    bad = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    return "" if bad is None else f"a character found that no file takes, U+{ord(bad):04X}"
