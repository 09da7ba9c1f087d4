"""Search spaces: from their names to one product of settings and domains."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.config import user_code
from rayfed.config.own_errors import contained, describe
from rayfed.config.watchdog import say_if_slow
from rayfed.errors import nearest
from tune_spaces.sweep.domains import Domain, is_domain, listed_values

if TYPE_CHECKING:
    from rayfed.config.schema import Config

HERE = Path(__file__).parents[1]
CHANGEABLE = (  # prefixes of the settings that a run may change between two rounds
    "local.",
    "method.",
    "federation.per_round",
    "federation.participation",
)


@dataclass
class Space:
    """The product of the named spaces.

    swept: setting -> domain; fixed: settings that all points share; named_by: setting -> the space that sets it; texts: path of
    a user's own file -> its content.
    """

    swept: dict[str, Domain] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    named_by: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether it has a grid."""
        return all(listed_values(d) is not None for d in self.swept.values())


def ready_spaces() -> dict[str, str]:
    """Return the ready spaces: name -> what it is."""
    out = {}
    for f in sorted(HERE.glob("*.py")):
        if f.stem != "__init__":
            with tokenize.open(f) as text:
                out[f.stem] = text.readline().strip().strip('"')
    return out


def load_spaces(names: Sequence[str], config: Config, problems: list[str], sets: Sequence[str] = ()) -> Space:
    """Load spaces and multiply them; what is wrong is appended to `problems`.

    names: NAME, path/to/file.py, or either with :PART; config: for spaces that are functions of it; sets: `a.b=c` of the
    command line, whose settings are not swept.
    """
    out, set_by_user = Space(), {s.partition("=")[0].strip() for s in sets}
    for name in names:
        for setting, value in (_load_part(name, config, out, problems) or {}).items():
            if setting in set_by_user or (setting in out.fixed and out.fixed[setting] == value):
                continue
            if setting in out.named_by:
                problems.append(
                    f"{setting}: both {out.named_by[setting]} and {name} set it; spaces multiply, so leave it to one"
                )
                continue
            out.named_by[setting] = name
            if not is_domain(value):
                out.fixed[setting] = value
            elif listed_values(value) == []:
                problems.append(f"{name}: {setting} has no values")
            else:
                out.swept[setting] = value
    if not out.swept and not problems:
        problems.append(
            f"{', '.join(names)}: nothing is swept; give a setting tune.grid_search([...]) or another Tune domain"
        )
    return out


def refuse_unchangeable(space: Space, problems: list[str]) -> None:
    """Append to `problems` the swept settings that PBT may not change in a run that continues: data, model, rounds ..."""
    for setting in space.swept:
        if not setting.startswith(CHANGEABLE):
            allowed = ", ".join(f + "..." if f.endswith(".") else f for f in CHANGEABLE)
            where = f"{setting} ({space.named_by[setting]})"
            problems.append(f"--scheduler pbt: {where} cannot change in mid-run; allowed: {allowed}")


def _load_part(name: str, config: Config, out: Space, problems: list[str]) -> Mapping[str, Any] | None:
    """Return what one space sets, and note its file in `out`; None, with a problem, where it cannot be loaded."""
    found = re.fullmatch(r"(?P<file>[^:]+?)(?::(?P<part>\w+))?", name.strip())
    file, part = (found["file"], found["part"] or "space") if found else (name, "space")
    path = Path(file) if file.endswith(".py") else HERE / f"{file}.py"
    own = user_code.content(file) if file.endswith(".py") else None
    if file.endswith(".py") and own is None:
        problems.append(f"space {name!r}: there is no file {file}")
        return None
    if not file.endswith(".py") and file not in ready_spaces():
        known = ready_spaces()
        problems.append(f"space {name!r}: unknown{nearest(file, known)}; ready: {', '.join(known)}; or path/to/file.py")
        return None
    try:
        module = user_code.load_file(file if own is not None else path)
    except Exception as error:
        problems.append(f"space {name!r}: {path} cannot be loaded: {describe(error)}")
        return None
    parts = [n for n, v in vars(module).items() if not n.startswith("_") and _is_part(v, module.__name__)]
    if part not in parts:
        hint = nearest(part, parts)
        text = (
            f"; it has: {', '.join(parts)}"
            if parts
            else "; a space is a mapping of settings, or a function of the config"
        )
        problems.append(f"space {name!r}: {path.name} has no {part!r}{hint}{text}")
        return None
    if own is not None:
        out.texts[file] = own.decode()
    made = getattr(module, part)
    try:
        with contained(), say_if_slow(f"space {name!r}"):
            made = made(config) if callable(made) else made
    except Exception as error:
        problems.append(f"space {name!r}: {part} raised {describe(error)}")
        return None
    if not isinstance(made, Mapping) or not all(isinstance(k, str) for k in made):
        problems.append(
            f"space {name!r}: {type(made).__name__} found, a mapping of settings (like method.clusters) is needed"
        )
        return None
    return made


def _is_part(value: Any, module: str) -> bool:
    """Return whether a name in a space's file is a part: a mapping, or a function that is defined there."""
    return isinstance(value, Mapping) or (
        callable(value) and getattr(value, "__module__", "") == module and not isinstance(value, type)
    )
