"""From the names of spaces to points, and from a point to a checked config. Runs before Ray starts."""

from __future__ import annotations

import itertools
import json
import re
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.config import user_code
from rayfed.errors import ConfigError, nearest
from rayfed.report.point_text import point_text, short_names

if TYPE_CHECKING:
    from rayfed.config.schema import Config

HERE = Path(__file__).parents[1]
PLAIN = (int, float, str, bool, type(None))
TRIES = 50  # draws for one new point of a space with few
TOLD = 3  # points named with a problem
FREE = (
    "local.",
    "method.",
    "federation.per_round",
    "federation.participation",
)  # what a run may change between two rounds

Point = dict[str, Any]  # setting -> value


@dataclass
class Space:
    """swept: setting -> Tune domain or {"grid_search": values}; fixed: settings that all points share; where: setting -> the
    space that named it; texts: path of a user's own file -> its content."""

    swept: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether it has a grid."""
        return all(values(d) is not None for d in self.swept.values())


def ready() -> dict[str, str]:
    """Names of the ready spaces with what they are."""
    out = {}
    for f in sorted(HERE.glob("*.py")):
        if f.stem != "__init__":
            with tokenize.open(f) as text:
                out[f.stem] = text.readline().strip().strip('"')
    return out


def values(domain: Any) -> list[Any] | None:
    """What a domain can take, if that is finite and listed."""
    if isinstance(domain, Mapping):
        return list(domain["grid_search"])
    return list(domain.categories) if hasattr(domain, "categories") else None


def load(names: Sequence[str], config: Config, problems: list[str], sets: Sequence[str] = ()) -> Space:
    """The product of spaces: NAME, path/to/file.py, or either with :PART. What is wrong goes to `problems`.

    sets: `a.b=c` of the command line; what is set there is not swept.
    """
    out, fixed_by_user = Space(), {s.partition("=")[0].strip() for s in sets}
    for name in names:
        found = _part(name, config, out, problems)
        for setting, domain in (found or {}).items():
            if setting in fixed_by_user:
                continue
            if setting in out.fixed and out.fixed[setting] == domain:
                continue
            if setting in out.where:
                problems.append(
                    f"{setting}: both {out.where[setting]} and {name} set it; spaces multiply, so leave it to one"
                )
                continue
            out.where[setting] = name
            if not _swept(domain):
                out.fixed[setting] = domain
            elif values(domain) == []:
                problems.append(f"{name}: {setting} has no values")
            else:
                out.swept[setting] = domain
    if not out.swept and not problems:
        problems.append(
            f"{', '.join(names)}: nothing is swept; give a setting tune.grid_search([...]) or another Tune domain"
        )
    return out


def _swept(domain: Any) -> bool:
    from ray.tune.search.sample import Domain

    return isinstance(domain, Domain) or (isinstance(domain, Mapping) and set(domain) == {"grid_search"})


def _part(name: str, config: Config, out: Space, problems: list[str]) -> Mapping[str, Any] | None:
    """What one space sets; None if it cannot be had."""
    found = re.fullmatch(r"(?P<file>[^:]+?)(?::(?P<part>\w+))?", name.strip())
    file, part = (found["file"], found["part"] or "space") if found else (name, "space")
    path = Path(file) if file.endswith(".py") else HERE / f"{file}.py"
    own = user_code.content(file) if file.endswith(".py") else None
    if file.endswith(".py") and own is None:
        problems.append(f"space {name!r}: there is no file {file}")
        return None
    if not file.endswith(".py") and file not in ready():
        known = ready()
        problems.append(f"space {name!r}: unknown{nearest(file, known)}; ready: {', '.join(known)}; or path/to/file.py")
        return None
    try:
        module = user_code.load_file(file if own is not None else path)
    except Exception as error:
        problems.append(f"space {name!r}: {path} cannot be loaded: {type(error).__name__}: {error}")
        return None
    parts = [n for n, v in vars(module).items() if not n.startswith("_") and _is_space(v, module.__name__)]
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
        made = made(config) if callable(made) else made
    except Exception as error:
        problems.append(f"space {name!r}: {part} raised {type(error).__name__}: {error}")
        return None
    if not isinstance(made, Mapping) or not all(isinstance(k, str) for k in made):
        problems.append(
            f"space {name!r}: {type(made).__name__} found, a mapping of settings (like method.clusters) is needed"
        )
        return None
    return made


def _is_space(value: Any, module: str) -> bool:
    return isinstance(value, Mapping) or (
        callable(value) and getattr(value, "__module__", "") == module and not isinstance(value, type)
    )


# -- points ------------------------------------------------------------------------------------------------------------


def grid(space: Space) -> list[Point]:
    """Every combination, the last setting fastest."""
    lists = [values(d) or [] for d in space.swept.values()]
    return [dict(zip(space.swept, combination, strict=True)) for combination in itertools.product(*lists)]


def draw(space: Space, samples: int, seed: int) -> list[Point]:
    """Random points, different from each other while there are such; the same for the same seed."""
    import numpy as np
    from ray import tune

    rng = np.random.RandomState(seed % 2**32)
    domains = {k: tune.choice(v) if (v := values(d)) is not None else d for k, d in space.swept.items()}
    out: list[Point] = []
    seen: set[str] = set()
    for _ in range(samples):
        for _ in range(TRIES):
            point = {k: plain(d.sample(None, random_state=rng)) for k, d in domains.items()}
            if json.dumps(point, sort_keys=True, default=str) not in seen:
                break
        else:
            return out  # a space with fewer points than samples
        seen.add(json.dumps(point, sort_keys=True, default=str))
        out.append(point)
    return out


def plain(value: Any) -> Any:
    """A drawn value as Python's own number."""
    return value.item() if hasattr(value, "item") else value


def config_of(base: Mapping[str, Any], fixed: Mapping[str, Any], point: Mapping[str, Any]) -> Config:
    """The config at a point. ConfigError with all that is wrong with it."""
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    found = load_request(base, {**fixed, **point})
    assert isinstance(found, Config)
    return found


def check(
    base: Mapping[str, Any], space: Space, points: Sequence[Point], problems: list[str], also: Callable[[Config], None]
) -> list[Config]:
    """The config of every point; a problem is told once, with the points that have it. also: raises ConfigError too."""
    found: dict[str, list[str]] = {}
    configs: list[Config] = []
    names = short_names(space.swept)
    for point in points:
        try:
            config = config_of(base, space.fixed, point)
            configs.append(config)
            also(config)
        except ConfigError as error:
            for p in error.problems:
                found.setdefault(p, []).append(point_text(point, names))
    for p, where in found.items():
        if len(where) == len(points):
            problems.append(p)
            continue
        more = f" and {len(where) - TOLD} more points" if len(where) > TOLD else ""
        problems.append(f"at {'; '.join(where[:TOLD])}{more}: {p}")
    return configs


# -- what Tune's searchers and PBT are given ---------------------------------------------------------------------------


def packed(domain: Any) -> Any:
    """A domain for a searcher that knows only plain categories: others travel as text, see `unpacked`."""
    from ray import tune

    found = values(domain)
    if found is None:
        return domain
    return tune.choice([v if isinstance(v, PLAIN) else f"json:{json.dumps(v)}" for v in found])


def unpacked(point: Mapping[str, Any]) -> Point:
    """What `packed` hid, and plain numbers."""
    return {
        k: json.loads(v.removeprefix("json:")) if isinstance(v, str) and v.startswith("json:") else plain(v)
        for k, v in point.items()
    }


def changeable(space: Space, problems: list[str]) -> None:
    """PBT changes settings of runs that go on; the data, the model and the number of rounds are not among them."""
    for setting in space.swept:
        if not setting.startswith(FREE):
            allowed = ", ".join(f + "..." if f.endswith(".") else f for f in FREE)
            where = f"{setting} ({space.where[setting]})"
            problems.append(f"--scheduler pbt: {where} cannot change in mid-run; allowed: {allowed}")


def inside(point: Mapping[str, Any], space: Space) -> Point:
    """PBT multiplies numbers; back into their domains."""
    out = dict(point)
    for k, d in space.swept.items():
        low, high = getattr(d, "lower", None), getattr(d, "upper", None)
        if low is not None and high is not None and k in out:
            top = high - 1 if isinstance(low, int) else high  # Tune's whole numbers leave out the upper end
            out[k] = min(max(out[k], low), top)
    return out
