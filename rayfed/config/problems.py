"""What is wrong with a config, in sentences: `a.b: what was found, what is allowed`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from rayfed.config.schema import Config, Model
from rayfed.errors import NUMBER, nearest

TAGS = ("kind", "profile")  # keys by which a section chooses its kind
# sections whose keys depend on their kind
UNIONS = {
    "partition": "federation.partition", "participation": "federation.participation", "adapter": "adapter", "devices": "devices"
}  # fmt: skip


def kinds(where: str) -> list[str]:
    """Return the kinds that the schema allows for a section, sorted; where: its path, "federation.groups"."""
    model: Any = Config
    *above, last = where.split(".")
    for key in above:
        model = model.model_fields[key].annotation
    found: set[str] = set()
    waiting = [model.model_fields[last].annotation]
    while waiting:
        a = waiting.pop()
        if isinstance(a, type) and issubclass(a, BaseModel):
            waiting += [a.model_fields[k].annotation for k in TAGS if k in a.model_fields]
        elif get_origin(a) is Literal:
            found |= {v for v in get_args(a) if isinstance(v, str)}
        else:
            waiting += get_args(a)
    return sorted(found)


def blames(problem: str, wrong: Collection[str]) -> bool:
    """Return whether a problem may come only from the default that stands for a wrong key."""
    return any(re.search(rf"\b{re.escape(w)}\b", problem) for w in wrong)


def sentences(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return pydantic's findings about a model as sentences; prefix: the path of the section that the model describes."""
    out: list[str] = []
    for e in error.errors(include_url=False)[: NUMBER + 1]:
        out += _sentences(e, model, prefix)
    return list(dict.fromkeys(out))


def _sentences(e: Any, model: type[BaseModel], prefix: str) -> list[str]:
    """Return one finding as sentences: several where a section's own rule has several lines."""
    where = [str(p) for p in e["loc"] if p not in ("function-before", "function-after")]
    tag = _union_tag(where)
    path = _keys_of(where, tag)
    name = ".".join(([prefix] if prefix else []) + path)
    context = e.get("ctx") or {}
    at = [tag] if tag else where
    if e["type"] == "extra_forbidden":
        known = _fields(model, path[:-1], at)
        of_kind = f" of kind {tag}" if tag else ""
        hint = nearest(path[-1], known)
        return [f"{name}: unknown key{of_kind}{hint}; known: {', '.join(known)}"]
    if e["type"] == "missing":
        return [f"{name}: missing"]
    if e["type"] == "union_tag_invalid":
        found = str(context.get("tag", ""))
        known = sorted(re.findall(r"'([^']*)'", str(context.get("expected_tags", ""))))
        return [f"{name}.{_tag_key(name)}: {found!r} found{nearest(found, known)}, allowed: {', '.join(known)}"]
    if e["type"] == "union_tag_not_found":
        return [f"{name}.{_tag_key(name)}: missing, allowed: {', '.join(kinds(name))}"]
    if e["type"] == "literal_error":
        allowed = str(context.get("expected", ""))
        words = [a.strip("'") for a in allowed.replace(" or ", ", ").split(", ")]
        return [f"{name}: {e['input']!r} found{nearest(str(e['input']), words)}, allowed: {allowed}"]
    if e["type"] == "value_error":
        lines = str(e["msg"]).removeprefix("Value error, ").splitlines()
        return [_of_rule(line, name, _fields(model, path, at)) for line in lines]
    message = str(e["msg"]).replace("Input should be", "should be")
    return [f"{name}: {e['input']!r} found, {message[0].lower()}{message[1:]}"]


def _tag_key(name: str) -> str:
    """Return the key by which a section chooses its kind."""
    return "profile" if name == "devices" else "kind"


def _of_rule(line: str, name: str, keys: Sequence[str]) -> str:
    """Return a line of a section's own rule as a sentence; the rule may name one of the section's keys first."""
    key, colon, rest = line.partition(": ")
    if colon and key.split(".")[0] in keys:
        return f"{'.'.join([name, key] if name else [key])}: {rest}"
    return f"{name}: {line}"


def _union_tag(where: Sequence[str]) -> str | None:
    """Return the kind that stands in a place of a finding behind a section whose keys depend on it; None without one."""
    for above, tag in itertools.pairwise(where):
        if above in UNIONS and tag in kinds(UNIONS[above]):
            return tag
    return None


def _keys_of(where: Sequence[str], tag: str | None) -> list[str]:
    """Return the keys of a finding's place, without the kinds and types that pydantic puts between them."""
    out = []
    for i, p in enumerate(where):
        is_kind = tag is not None and p == tag and where[i - 1] in UNIONS
        is_group = p == Model.FAMILIES and where[i - 1 : i] == [
            "model"
        ]  # of families, which stand in `task.model` itself
        if not (is_kind or is_group) and not p.startswith(("literal[", "int", "float", "constrained")):
            out.append(p)
    return out


def _fields(model: Any, path: Sequence[str], where: Sequence[str]) -> list[str]:
    """Return the known keys of the section at `path`; where: names among which the kind of a union's section stands."""
    for key in path:
        field = model.model_fields.get(key) or next((f for f in model.model_fields.values() if f.alias == key), None)
        annotations = (field.annotation, *get_args(field.annotation)) if field else ()
        sections = [a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return []
        model = next((s for s in sections if _tags(s) & set(where)), sections[0])
    return [f.alias or n for n, f in model.model_fields.items()]


def _tags(section: type[BaseModel]) -> set[str]:
    """Return the kinds that a section of a union stands for."""
    return {str(v) for k in TAGS if k in section.model_fields for v in get_args(section.model_fields[k].annotation)}
