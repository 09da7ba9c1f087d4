"""What `rayfed sweep` is asked for: options, spaces and points, read and checked before Ray starts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed import methods
from rayfed.errors import ConfigError, nearest
from rayfed.launch import metric_names
from rayfed.launch.federations import Federations
from rayfed.metrics import lower_is_better
from tune_spaces.sweep.domains import Point, listed_values
from tune_spaces.sweep.points import check_points, draw_points, grid_points, grid_size
from tune_spaces.sweep.spaces import Space, load_spaces, refuse_unchangeable

if TYPE_CHECKING:
    from rayfed.config.schema import Config

SEARCHES, SCHEDULERS = ("grid", "random", "optuna"), ("none", "asha", "pbt")
SAMPLES = 10  # points where the search draws them and --samples does not say how many
CHECKED = 20  # points of a space without a grid that are tried on the config before anything starts
LARGEST_GRID = 10_000  # points


@dataclass(frozen=True)
class SweepOptions:
    """How to search.

    search: grid | random | optuna, None for the grid where the space has one; samples: points that are drawn; scheduler: none |
    asha | pbt; seeds: of every point, () for the config's; metric: NAME/SCOPE that trials are judged by; concurrent: trials at
    a time, None for as many as fit; reuse: trials follow each other in one process.
    """

    search: str | None = None
    samples: int | None = None
    scheduler: str = "none"
    seeds: tuple[int, ...] = ()
    metric: str = "accuracy/global"
    concurrent: int | None = None
    reuse: bool = True

    @property
    def mode(self) -> str:
        """Which values of the metric are better, in Tune's words: max | min."""
        return "min" if lower_is_better(self.metric) else "max"


@dataclass(frozen=True)
class SweepRequest:
    """A checked request.

    points: all of them where they are known before the start, else None; configs: of those points, or of some draws.
    """

    names: tuple[str, ...]
    base: Config
    options: SweepOptions
    space: Space
    points: list[Point] | None
    configs: list[Config]
    sets: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """How many trials are planned."""
        return len(self.points) if self.points is not None else (self.options.samples or SAMPLES)


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """Read `0,1,2`. Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"--seeds: {text!r} found, allowed: whole numbers with commas between, like 0,1,2") from None


def check_request(
    names: Sequence[str],
    config: str | Path | Mapping[str, Any],
    options: SweepOptions,
    sets: Sequence[str] = (),
    arm: str | None = None,
) -> SweepRequest:
    """Read and check a request.

    Arguments:
        names: of spaces.
        config: a file, the name of a ready config, or a mapping.
        sets: overrides `a.b=c`.
        arm: which arm, where the config is a study.

    Raises ConfigError with all that is wrong: options, spaces, every point of the grid.
    """
    from rayfed.config.schema import Config
    from rayfed.launch.preflight import load_request

    problems: list[str] = []
    try:
        request = load_request(config, sets)
    except ConfigError as error:
        problems += error.problems
        _check_options(options, None, problems)
        raise ConfigError(problems) from None
    seeds = options.seeds
    if isinstance(request, Config):
        base = request
        if arm is not None:
            problems.append(f"--arm {arm}: {config} has no arms")
    else:
        seeds = seeds or request.seeds
        only = next(iter(request.arms)) if len(request.arms) == 1 else None
        chosen = arm or only
        if chosen not in request.arms:
            found = (
                f"--arm {arm}: unknown{nearest(arm, request.arms)}"
                if arm
                else f"{config} is a study: name the arm to sweep"
            )
            problems.append(f"{found}; --arm {' | '.join(request.arms)}")
        base = request.arms.get(chosen or "", request.base)
    space = load_spaces(names, base, problems, sets)
    search = options.search or ("grid" if space.finite and options.scheduler != "pbt" else "random")
    options = replace(options, seeds=seeds or (base.seed,), search=search)
    _check_options(options, space, problems)
    if options.scheduler == "pbt":
        refuse_unchangeable(space, problems)
    if problems:
        raise ConfigError(problems)
    points = _known_points(space, options, base.seed)
    configs = _check_splits(base, space, options, points, problems)
    if problems:
        raise ConfigError(problems)
    return SweepRequest(tuple(names), base, options, space, points, configs, tuple(sets))


def repeat_request(
    names: Sequence[str],
    base: Config,
    options: SweepOptions,
    points: list[Point] | None,
    sets: Sequence[str],
) -> SweepRequest:
    """Check the request of a sweep that is resumed, whose data were split before. Raises ConfigError."""
    problems: list[str] = []
    space = load_spaces(names, base, problems, sets)
    _check_options(replace(options, samples=None), space, problems)
    configs = check_points(base.to_dict(), space, points or draw_points(space, CHECKED, base.seed), problems)
    if problems:
        raise ConfigError(problems)
    return SweepRequest(tuple(names), base, options, space, points, configs, tuple(sets))


def _known_points(space: Space, options: SweepOptions, seed: int) -> list[Point] | None:
    """Return all points where the search does not wait for results. Raises ConfigError where the grid is too large."""
    if options.search == "grid":
        if (size := grid_size(space)) > LARGEST_GRID:
            raise ConfigError(
                f"--search grid: {size:,} points; allowed: {LARGEST_GRID:,}. Take --search random --samples N"
            )
        return grid_points(space)
    if options.search == "random":
        return draw_points(space, options.samples or SAMPLES, seed)
    return None


def _check_splits(
    base: Config, space: Space, options: SweepOptions, points: list[Point] | None, problems: list[str]
) -> list[Config]:
    """Return the configs of the points, or of some draws, and check that the data can be split as each says."""
    federations = Federations()

    def check_split(c: Config) -> None:
        split = federations.of(c.model_copy(update={"seed": options.seeds[0]}))
        if wrong := metric_names.problem("--metric", options.metric, methods.of(c), split):
            raise ConfigError(wrong)

    def split_of(point: Point) -> str:
        return json.dumps({k: v for k, v in point.items() if k.startswith(("federation", "task"))}, default=str)

    tried = points if points is not None else draw_points(space, CHECKED, base.seed)
    # Points on the same split one after the other: it is made once for all of them.
    return check_points(base.to_dict(), space, sorted(tried, key=split_of), problems, check_split)


def _check_options(o: SweepOptions, space: Space | None, problems: list[str]) -> None:
    """Append to `problems` what is wrong with the options, alone and for this space."""
    if o.search is not None and o.search not in SEARCHES:
        problems.append(f"--search: {o.search!r} found{nearest(o.search, SEARCHES)}, allowed: {', '.join(SEARCHES)}")
    if o.scheduler not in SCHEDULERS:
        hint = nearest(o.scheduler, SCHEDULERS)
        problems.append(f"--scheduler: {o.scheduler!r} found{hint}, allowed: {', '.join(SCHEDULERS)}")
    if len(set(o.seeds)) < len(o.seeds) or any(s < 0 for s in o.seeds):
        problems.append(f"--seeds: {','.join(map(str, o.seeds))} found, allowed: different whole numbers >= 0")
    for name, value in (("samples", o.samples), ("concurrent", o.concurrent)):
        if value is not None and value < 1:
            problems.append(f"--{name}: {value} found, allowed: a whole number >= 1")
    if not all(o.metric.partition("/")[::2]):
        problems.append(f"--metric: {o.metric!r} found, allowed: NAME/SCOPE, like accuracy/global")
    if o.search == "optuna" and importlib.util.find_spec("optuna") is None:
        problems.append("--search optuna: Optuna is not installed: pip install 'rayfed-engine[optuna]'")
    if o.scheduler == "pbt" and o.search == "optuna":
        problems.append("--scheduler pbt: it changes the points itself, allowed with it: --search random or grid")
    if space is None or not space.swept or o.search != "grid":
        return
    if o.samples is not None:
        problems.append("--samples: a grid has every point once; for several runs of a point, take --seeds 0,1,2")
    for s, d in space.swept.items():
        if listed_values(d) is None:
            problems.append(
                f"--search grid: {s} ({space.named_by[s]}) is no list of values; take --search random or optuna"
            )
