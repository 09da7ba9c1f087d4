"""Points of a space: the grid, random draws, and the checked config at each. Runs before Ray starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError
from rayfed.report.point_text import point_text, short_names
from tune_spaces.sweep.domains import Point, listed_values, plain_number
from tune_spaces.sweep.spaces import Space

if TYPE_CHECKING:
    from rayfed.config.schema import Config

TRIES = 50  # draws for one new point of a space with few
SHOWN = 3  # points named with a problem


def grid_size(space: Space) -> int:
    """Count the points of a finite space's grid."""
    size = 1
    for domain in space.swept.values():
        size *= len(listed_values(domain) or [])
    return size


def grid_points(space: Space) -> list[Point]:
    """Return every combination, the last setting fastest."""
    lists = [listed_values(d) or [] for d in space.swept.values()]
    return [dict(zip(space.swept, combination, strict=True)) for combination in itertools.product(*lists)]


def draw_points(space: Space, samples: int, seed: int) -> list[Point]:
    """Draw random points, none twice; fewer than `samples` where the space has no more. The same seed draws the same."""
    import numpy as np
    from ray import tune

    rng = np.random.RandomState(seed % 2**32)
    domains = {k: tune.choice(v) if (v := listed_values(d)) is not None else d for k, d in space.swept.items()}
    out: list[Point] = []
    seen: set[str] = set()
    for _ in range(samples):
        for _ in range(TRIES):
            point = {k: plain_number(d.sample(None, random_state=rng)) for k, d in domains.items()}
            if json.dumps(point, sort_keys=True, default=str) not in seen:
                break
        else:
            return out
        seen.add(json.dumps(point, sort_keys=True, default=str))
        out.append(point)
    return out


def config_at(base: Mapping[str, Any], fixed: Mapping[str, Any], point: Mapping[str, Any]) -> Config:
    """Return the config at a point. Raises ConfigError with all that is wrong with it."""
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    found = load_request(base, {**fixed, **point})
    assert isinstance(found, Config)
    return found


def check_points(
    base: Mapping[str, Any],
    space: Space,
    points: Sequence[Point],
    problems: list[str],
    also: Callable[[Config], None] | None = None,
) -> list[Config]:
    """Return the config of every point that has one.

    A problem is appended to `problems` once, with the points that have it. also: a further check, which raises ConfigError.
    """
    found: dict[str, list[str]] = {}
    configs: list[Config] = []
    names = short_names(space.swept)
    for point in points:
        try:
            config = config_at(base, space.fixed, point)
            configs.append(config)
            if also is not None:
                also(config)
        except ConfigError as error:
            for p in error.problems:
                found.setdefault(p, []).append(point_text(point, names))
    for p, where in found.items():
        if len(where) == len(points):
            problems.append(p)
            continue
        more = f" and {len(where) - SHOWN} more points" if len(where) > SHOWN else ""
        problems.append(f"at {'; '.join(where[:SHOWN])}{more}: {p}")
    return configs
