"""A claim's file: a study with `claim:`, and how it was registered before anything was run.

    registered:
      date: 2026-11-30
      seeds: 8                     # or [8, 16, 32]: looks at a growing number of seeds, with spent alpha
      tune: {grid: {local.optimizer.lr: [0.03, 0.1, 0.3, 1.0]}, seeds: 3, metric: accuracy/global,
             arms: {fedprox: {method.mu: [0.01, 0.1, 1.0]}}}
      withdrawn: why               # stays listed, is run no more

    like: label_skew             # the question of another file, on other data: its settings, with these over them

Seeds come from a hash of the file's settings and the date, so that they cannot be chosen, and a changed file has others.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from rayfed.config import reading
from rayfed.config.load import merge, nested
from rayfed.config.problems import sentences
from rayfed.config.schema import Section, Study
from rayfed.errors import ConfigError, nearest
from rayfed.launch.preflight import load_request
from rayfed.metrics import lower_is_better

SEEDS = 2**31  # seeds are below
BEYOND = 2  # how often an arm goes beyond the edge of its grid
FIXED: dict[str, Any] = {  # how runs of claims execute where the file does not say it: not by timing
    "executor": "vmap", "matmul": "torch", "channels_last": False,
}  # fmt: skip


class Tune(Section):
    """How settings are chosen: the same grid, seeds and metric for every arm, on a validation part of the training data.

    Where the best of three or more numbers is the least or the largest, the next one beyond it is tried too, BEYOND times at most.
    """

    grid: dict[str, list[Any]] = Field({}, description="Setting -> values that every arm tries, all combinations.")
    arms: dict[str, dict[str, list[Any]]] = Field({}, description="Arm -> settings that it alone tries as well.")
    seeds: int = Field(3, ge=1, description="Seeds of each trial, other ones than those of the verdict.")
    metric: str = Field("accuracy/global", description="The mean over seeds at the last round decides.")
    val: float = Field(
        0.2, gt=0, lt=1, description="Share of each client's examples that is scored and not trained on."
    )

    @model_validator(mode="after")
    def _values(self) -> Tune:
        for name, values in [*self.grid.items(), *(x for g in self.arms.values() for x in g.items())]:
            if not values or any(isinstance(v, Mapping | list) for v in values):
                raise ValueError(f"{name}: {values!r} found, allowed: a list of plain values")
        if not self.grid and not self.arms:
            raise ValueError("neither grid nor arms names a setting")
        return self


class Registered(Section):
    """What was fixed before a claim was run."""

    date: datetime.date
    seeds: int | list[int] = Field(8, description="Number of seeds, or numbers at which the claims are looked at.")
    tune: Tune | None = None
    withdrawn: str | None = Field(None, description="Why the claim is run no more.")

    @field_validator("seeds")
    @classmethod
    def _growing(cls, v: Any) -> Any:
        looks = v if isinstance(v, list) else [v]
        if not looks or looks[0] < 2 or any(b <= a for a, b in itertools.pairwise(looks)):
            raise ValueError(f"{v} found, allowed: a number >= 2, or growing numbers such as [8, 16, 32]")
        return v

    @property
    def looks(self) -> list[int]:
        """The numbers of seeds at which the claims are judged."""
        return self.seeds if isinstance(self.seeds, list) else [self.seeds]


@dataclass(frozen=True)
class ClaimFile:
    """A claim's file as read: its study with the seeds of the last look, its registration (None: none), its digest, and the file
    whose question it asks of other data (None: its own)."""

    path: Path
    study: Study
    registered: Registered | None
    digest: str
    like: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def looks(self) -> list[int]:
        """The numbers of seeds at which its claims are judged."""
        return self.registered.looks if self.registered else [len(self.study.seeds)]

    def part(self, seeds: Sequence[int], changes: Mapping[str, Mapping[str, Any]] | None = None) -> Study:
        """Return the study with some of its seeds and with changes of its arms, as a request of its own."""
        raw = json.loads(json.dumps(self.study.raw))
        arms = {arm: merge(raw["arms"].get(arm) or {}, change) for arm, change in (changes or {}).items()}
        return _study({**raw, "seeds": list(seeds), "arms": {**raw["arms"], **arms}}, self.path)

    def alone(self, arm: str, seeds: Sequence[int], changes: Sequence[Mapping[str, Any]]) -> Study:
        """Return a study of one arm under changes, without claims."""
        raw = json.loads(json.dumps(self.study.raw))
        change = raw["arms"].get(arm) or {}
        for more in changes:
            change = merge(change, more)
        kept = {k: v for k, v in raw.items() if k != "claim"}
        return _study({**kept, "seeds": list(seeds), "arms": {arm: change}}, self.path)


class WithDates(reading.Loader):
    """YAML in which dates are dates: of registering."""

    plain = (*reading.PLAIN, datetime.date)


def as_written(path: Path) -> dict[str, Any]:
    """Return a claim's settings as written, with `like` over those of the file beside it that it names. ConfigError where that is none."""
    raw = _mapping(path)
    like = raw.pop("like", None)
    if like is None:
        return raw
    other = path.with_name(f"{like}.yaml")
    if not other.is_file():
        known = [f.stem for f in path.parent.glob("*.yaml")]
        raise ConfigError(f"{path}: like: {like!r} found, no claim is called so{nearest(str(like), known)}")
    base = _mapping(other)
    if "like" in base:
        raise ConfigError(f"{path}: like: {like!r} found, which is itself like {base['like']!r}; name that one")
    if "registered" in base:
        base["registered"] = {k: v for k, v in base["registered"].items() if k != "withdrawn"}
    return merge(base, raw)


def _mapping(path: Path) -> dict[str, Any]:
    raw = reading.read_file(path, WithDates)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path}: a claim is a mapping of keys, found {type(raw).__name__}")
    return dict(raw)


def read_claim_file(path: Path, load: Callable[..., Any] = load_request) -> ClaimFile:
    """Read a claim's file. ConfigError if it is not a study with claims, or wrongly registered.

    load: what reads its study; `load_config` where its data need not be there.
    """
    raw, registered = as_written(path), None
    digest = settings_digest(path)
    if "registered" in raw:
        registered = _registered(raw.pop("registered"), path)
        if "seeds" in raw:
            raise ConfigError(f"{path}: seeds: a registered claim draws its seeds; leave the list out")
        raw["seeds"] = drawn_seeds(path.stem, digest, registered.looks[-1], "judge")
    raw["resources"] = {**FIXED, **(raw.get("resources") or {})}
    raw["evaluate"] = {**(raw.get("evaluate") or {}), "rows": _judged_rounds(raw.get("claim"))}
    study = _study(raw, path, load)
    if not study.claims:
        raise ConfigError(f"{path}: a claim is a study (seeds, arms) with `claim:`")
    problems = _differing(study)
    if registered and registered.tune:
        problems += [
            f"registered.tune.arms: {arm!r} is not an arm{nearest(arm, study.arms)}; arms: {', '.join(study.arms)}"
            for arm in registered.tune.arms if arm not in study.arms
        ]  # fmt: skip
    if problems:
        raise ConfigError([f"{path}: {p}" for p in problems])
    return ClaimFile(path, study, registered, digest, _mapping(path).get("like"))


def settings_digest(path: Path) -> str:
    """Return a digest of a claim's settings, which does not depend on comments."""
    return hashlib.sha256(json.dumps(as_written(path), sort_keys=True, default=str).encode()).hexdigest()[:16]


def drawn_seeds(name: str, digest: str, n: int, purpose: str) -> list[int]:
    """Return n different seeds that follow from a claim's name, settings and date (which is among the settings)."""
    seeds: dict[int, None] = {}
    for k in itertools.count():
        drawn = hashlib.sha256(f"{name} {digest} {purpose} {k}".encode()).digest()
        seeds[int.from_bytes(drawn[:8], "big") % SEEDS] = None
        if len(seeds) == n:
            return list(seeds)
    raise AssertionError


def trials(tune: Tune, arm: str) -> list[dict[str, Any]]:
    """Return the combinations of values that an arm tries, setting -> value, in the grid's order."""
    grid = {**tune.grid, **tune.arms.get(arm, {})}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def best_trial(scores: Sequence[float | None], metric: str) -> int:
    """Return the index of the best score, the first among equals; None is worst. ConfigError if all are None."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    known = [(sign * s, -i) for i, s in enumerate(scores) if s is not None]
    if not known:
        raise ConfigError(f"registered.tune: no trial has a value of {metric}")
    return -max(known)[1]


def at_edge(tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[str]:
    """Return the settings whose chosen value is the least or largest of three or more numbers that an arm tried."""
    return [k for k, v in chosen.items() if len(numbers := _numbers(tried, k)) > 2 and v in (numbers[0], numbers[-1])]


def beyond(tried: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each setting whose chosen value is at the edge a trial of the next one: as far from it by ratio as the one before it,
    to two digits, with everything else as chosen. Positive numbers with a point alone are gone beyond."""
    out = []
    for name in at_edge(tried, chosen):
        numbers = _numbers(tried, name)
        edge, near = numbers[:2] if chosen[name] == numbers[0] else numbers[:-3:-1]
        if numbers[0] > 0 and all(isinstance(n, float) for n in numbers):
            out.append({**chosen, name: float(f"{edge * edge / near:.2g}")})
    return out


def _numbers(tried: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return the different numbers that were tried of a setting, growing."""
    return sorted({t[name] for t in tried if isinstance(t[name], int | float)})


def change_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a.b": c} as {"a": {"b": c}}."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out = merge(out, nested(name, value))
    return out


def _study(raw: Mapping[str, Any], path: Path, load: Callable[..., Any] = load_request) -> Study:
    try:
        request = load(raw)
    except ConfigError as e:
        raise ConfigError([f"{path}: {p}" for p in e.problems]) from None
    if not isinstance(request, Study):
        raise ConfigError(f"{path}: a claim is a study (seeds, arms) with `claim:`")
    return request


def _registered(raw: Any, path: Path) -> Registered:
    try:
        return Registered.model_validate(raw)
    except ValidationError as e:
        raise ConfigError([f"{path}: {p}" for p in sentences(e, Registered, "registered")]) from None


def _judged_rounds(claim: Any) -> list[int]:
    """Return the rounds at which claims are judged: scores by row are kept there."""
    claims = claim if isinstance(claim, list) else [claim]
    return sorted({c["at"] for c in claims if isinstance(c, Mapping) and isinstance(c.get("at"), int)})


def _differing(study: Study) -> list[str]:
    """Return a problem for each setting of execution in which arms differ: verdicts compare like with like."""
    problems = []
    for name in ("executor", "matmul", "channels_last", "cpus_per_actor"):
        found = {arm: getattr(c.resources, name) for arm, c in study.arms.items()}
        if len(set(found.values())) > 1:
            problems.append(f"resources.{name}: arms differ ({', '.join(f'{a}: {v}' for a, v in found.items())})")
    return problems
