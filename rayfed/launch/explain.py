"""What the keys of a config mean, read from the schema and from the methods' settings: `rayfed config explain KEY`."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from rayfed import methods
from rayfed.config.schema import Config, Named, Need
from rayfed.errors import ConfigError, nearest

WORDS = {bool: "true | false", int: "whole number", float: "number", str: "text", type(None): "null", Any: "any value"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMED = "a name, or {name: NAME} with its own settings"
OF_STUDIES = {  # keys that make a config a study: `rayfed.config.load` reads them
    "seeds": (
        "list of whole number",
        "Every arm runs with each of these seeds, on the same splits; the file is then a study.",
    ),
    "arms": (
        "names, each with overrides",
        "Named changes of this config that are compared; each runs with every seed.",
    ),
    "claim": (
        "{metric, at, better, than}, or a list of such",
        "What is claimed of two arms at a round; judged over seeds in the report.",
    ),
}


class Meaning(NamedTuple):
    """What a key means.

    key: its path; of: the kind of its section, or the method, that has it, "" where all have it; takes: its values in words;
    default: as YAML, None where it has to be given; about: a sentence.
    """

    key: str
    of: str
    takes: str
    default: str | None
    about: str


def explain(key: str = "") -> list[Meaning]:
    """Return what a key means, and if it is a section what its keys do; several for a key that several kinds or methods have.

    key: a path, or its last part; "" for the sections of a config. ConfigError with the nearest key for one that there is not.
    """
    known = list(meanings())
    if not key:
        return [m for m in known if "." not in m.key]
    exact = [m for m in known if m.key == key]
    found = exact or [m for m in known if m.key.endswith(f".{key}")]
    if not found:
        last = {m.key.rpartition(".")[2]: m.key for m in reversed(known)}
        near = nearest(key, [m.key for m in known]) or nearest(key.rpartition(".")[2], last)
        raise ConfigError(
            f"config explain: {key!r} is no key of a config{near}; `rayfed config explain` lists its sections"
        )
    sections = {m.key for m in found}
    return [*found, *(m for m in known if m.key.rpartition(".")[0] in sections and m not in found)]


def keys() -> list[str]:
    """Return the path of every key, each once."""
    return list(dict.fromkeys(m.key for m in meanings()))


def meanings() -> Iterator[Meaning]:
    """Yield every key of a config and of all methods' settings, sections before what is in them."""
    for m in _section(Config, "", ""):
        yield m
        if m.key == "method":
            for name in sorted(methods.ready()):
                yield from _section(methods.get(name).Settings, "method", name)
    for key, (takes, about) in OF_STUDIES.items():
        yield Meaning(key, "", takes, "null", about)


def text(found: Sequence[Meaning]) -> str:
    """Return what `explain` gives as lines for a terminal."""
    lines = []
    for key in dict.fromkeys(m.key for m in found):
        same = [m for m in found if m.key == key]
        lines.append(key)
        for values in dict.fromkeys(m[2:] for m in same):  # kinds and methods that agree go together
            of = ", ".join(m.of for m in same if m[2:] == values and m.of)
            takes, default, about = values
            given = "" if takes == "section" else ", required" if default is None else f", default {default}"
            lines.append(f"  {f'{of}: ' if of else ''}{takes}{given}")
            lines += [f"      {about}"] if about else []
    return "\n".join(lines)


def _section(model: type[BaseModel], path: str, of: str) -> Iterator[Meaning]:
    """Yield the keys of a section; of: its kind, or the method."""
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        inner = [a for a in _parts(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner or any(issubclass(a, Named) for a in inner):
            yield _meaning(key, of, field, getattr(model, "needs", {}).get(name, ()), NAMED if inner else "")
            continue
        yield Meaning(key, of, "section", None, field.description or "")
        if len(inner) == 1:
            yield from _section(inner[0], key, of)
            continue
        tag = str(field.discriminator)  # the key that says which of the sections it is
        default = field.get_default(call_default_factory=True)
        chosen = None if default is None else str(getattr(default, tag))
        yield Meaning(f"{key}.{tag}", of, " | ".join(k for a in inner for k in _kinds(a, tag)), chosen, "")
        for section in inner:
            found = _section(section, key, " | ".join(_kinds(section, tag)))
            yield from (m for m in found if m.key != f"{key}.{tag}")


def _kinds(section: type[BaseModel], tag: str) -> tuple[str, ...]:
    return tuple(get_args(section.model_fields[tag].annotation))


def _meaning(key: str, of: str, field: FieldInfo, needs: Sequence[Need], takes: str) -> Meaning:
    bounds = [f"{word} {getattr(m, b):g}" for m in field.metadata for b, word in BOUNDS.items() if hasattr(m, b)]
    default = None if field.is_required() else _yaml(field.get_default(call_default_factory=True))
    only = f"Only with {' and '.join(n.text() for n in needs)}." if needs else ""
    words = " ".join([takes or _words(field.annotation), " and ".join(bounds)]).rstrip()
    return Meaning(key, of, words, default, f"{field.description or ''} {only}".strip())


def _parts(annotation: Any) -> list[Any]:
    """Return the members of a union, or the type itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [p for a in get_args(annotation) for p in _parts(a)]
    return [annotation]


def _words(annotation: Any) -> str:
    """Return in words what a setting of this type takes."""
    out = []
    for part in _parts(annotation):
        origin, args = get_origin(part), get_args(part)
        if origin is Literal:
            out += [_yaml(a) for a in args]
        elif origin in (list, tuple):
            out.append(f"list of {_words(args[0])}" if args else "list")
        elif origin is dict:
            out.append(f"{{{_words(args[0])}: {_words(args[1])}}}")
        else:
            out.append(WORDS.get(part, getattr(part, "__name__", str(part))))
    return " | ".join(dict.fromkeys(out))


def _yaml(value: Any) -> str:
    """Return a value as one would write it into a config, in a line."""
    plain = TypeAdapter(Any).dump_python(value, mode="json", by_alias=True)
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
