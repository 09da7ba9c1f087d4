"""Settings that nothing reads as the others are: refused, since whoever sets one means something by it.

A section says of such a setting, in its `needs`, which value of another one it belongs to. At its default a setting asks for
nothing. What only switches off (a weight of 0, `distill: false`) is no such value: a control arm keeps the other settings. Where an
arm, a point of a sweep or `--set` chooses another kind, what the config said for its own kind falls away (`config.load`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfed.config.schema import Need, Section


class Unread(str):
    """A sentence about a setting that nothing reads. setting: its path."""

    setting: str


def sentences(section: Section, where: str = "") -> list[Unread]:
    """Return a sentence for every setting of a section, and of the sections in it, that is set and that nothing reads; where: its path."""
    found: list[Unread] = []
    for name, field in type(section).model_fields.items():
        value, at = getattr(section, name), f"{where}.{field.alias or name}".lstrip(".")
        if hasattr(value, "model_fields_set"):
            found += sentences(value, at)
        elif value != field.get_default(call_default_factory=True):
            unmet = next((n for n in section.needs.get(name, ()) if not is_met(n, section)), None)
            found += [sentence(at, value, unmet.of, getattr(section, unmet.of), unmet.text())] if unmet else []
    return found


def sentence(setting: str, value: Any, of: str, found: Any, allowed: str) -> Unread:
    """Return the sentence about a setting that nothing reads, since another one, `of`, is as it was found."""
    said = f"{setting}: {value!r} found, but nothing reads it with {of}: {found}; allowed: leave it out, or {allowed}"
    made = Unread(said)
    made.setting = setting
    return made


def is_met(need: Need, section: Section) -> bool:
    """Return whether a section has what one of its settings needs."""
    return (getattr(section, need.of) in need.values) != need.but
