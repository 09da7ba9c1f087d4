"""Words of the config whose part is not built yet: refused by name, so that nobody thinks that they are misspelt.

The value that asks for nothing, `transforms: []`, is accepted and left out of the resolved config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayfed.errors import nearest

EMPTY: dict[str, Any] = {  # sections that the schema does not have -> the value that asks for nothing
    "transforms": [],
}
REFUSED: dict[str, tuple[str, ...]] = {  # section -> kinds (profiles, items of a list) that are to come
    "transforms": ("clip", "gaussian", "topk", "randomk", "quantise", "mask"),
}


def sections_to_come(where: str) -> list[str]:
    """Return the names that the schema does not have in the section at a path, "" for the whole config."""
    return [name.rpartition(".")[2] for name in EMPTY if name.rpartition(".")[0] == where]


def take_out(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a config without the words whose part is not built yet, and a sentence for each of them that asks for something."""
    out, problems = dict(raw), []
    for where in EMPTY:
        *above, last = where.split(".")
        section: dict[str, Any] | None = out
        for key in above:
            inner = section.get(key) if section is not None else None
            if section is not None and isinstance(inner, Mapping):
                section[key] = inner = dict(inner)
            section = inner if isinstance(inner, dict) else None
        if section is None or last not in section:
            continue
        problems += _asked_for(where, section.pop(last))
    return out, problems


def _asked_for(where: str, value: Any) -> list[str]:
    """Return a sentence for everything that a section asks for beyond its empty value."""
    empty = EMPTY[where]
    if isinstance(empty, list):
        return _items(where, value)
    first = next(iter(empty))
    value = {first: value} if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        return [f"{where}: {value!r} found, should be a valid dictionary"]
    if found := _refused_kind(where, value, first, [str(empty[first])]):
        return found
    problems = []
    for key, v in value.items():
        if key not in empty:
            problems.append(f"{where}.{key}: unknown key{nearest(str(key), empty)}; known: {', '.join(empty)}")
        elif v != empty[key]:
            yet = "" if where in REFUSED else ": not available yet"
            allowed = "null" if empty[key] is None else repr(empty[key])
            problems.append(f"{where}.{key}: {v!r} found{yet}, allowed: {allowed}")
    return problems


def _refused_kind(where: str, section: Any, key: str, available: Sequence[str]) -> list[str]:
    """Return the sentence about a section's kind if that is one to come."""
    kind = section.get(key) if isinstance(section, Mapping) else section
    if not isinstance(kind, str) or kind not in REFUSED.get(where, ()):
        return []
    return [f"{where}.{key}: {kind!r} is not available yet (available: {', '.join(available)})"]


def _items(where: str, value: Any) -> list[str]:
    """Return a sentence for every item of a list that has to be empty."""
    if not isinstance(value, list):
        return [f"{where}: {value!r} found, should be a valid list"]
    problems, words, empty = [], REFUSED[where], "(available: none, leave the list empty)"
    for i, item in enumerate(value):
        kind = item.get("kind", item) if isinstance(item, Mapping) else item
        if isinstance(kind, str) and kind in words:
            problems.append(f"{where}: {kind!r} is not available yet {empty}")
        else:
            problems.append(f"{where}.{i}: {kind!r} found{nearest(str(kind), words)} {empty}")
    return problems
