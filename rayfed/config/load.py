"""From a file, a ready name or a mapping to a config: overrides, variables, arms, and all problems at once."""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rayfed.config import reading, system, unread, user_code
from rayfed.config.problems import TAGS, blames, sentences
from rayfed.config.schema import Claim, Config, Study
from rayfed.errors import NUMBER, ConfigError, nearest, refusing

# (the config as written, as validated or None, keys whose defaults stand for wrong values) -> what else is wrong
Judge = Callable[[Mapping[str, Any], Config | None, Collection[str]], list[str]]

READY = Path(__file__).parent / "ready"
SHORT = (
    *((k, "name") for k in ("method", "task.data", "task.model", "task.kind", "evaluate.retained")),
    *((k, "kind") for k in ("adapter", "aggregate")),
    ("devices", "profile"),
    *((f"federation.{k}", "kind") for k in ("partition", "groups", "participation", "holdout", "stream")),
)
STUDY_KEYS = ("seeds", "arms", "claim")
FOLDER = re.compile(r"[\w+=-][\w.+=-]*")
STUDY_FILES = re.compile(  # what a study's folder holds besides its arms
    r"study\.yaml|results\.parquet|summary\.json|provenance\.json|report\.html|plots|code|remote\.json|versions|manifest-.*"
)
LONGEST = 200  # bytes of a name that begins a folder's; file systems take 255
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def ready() -> list[str]:
    """Return the names of the ready configs."""
    return sorted(f.stem for f in READY.glob("*.yaml"))


def load_config(
    source: str | Path | Mapping[str, Any],
    sets: Sequence[str] | Mapping[str, Any] = (),
    judge: Judge | None = None,
) -> Config | Study:
    """Return the config or the study of a file, a ready name or a mapping, with overrides: `a.b=c`, or {"a.b": c}.

    In mappings a class or function may stand for the name of a method, data or model. judge: what judges each config beyond
    the schema; whatever is to be run goes through `rayfed.launch.preflight.load_request`. ConfigError lists all problems.
    """
    problems: list[str] = []
    if isinstance(source, Mapping):
        reading.check(source, "config")
        raw = user_code.named(copy.deepcopy(dict(source)))
    else:
        raw = _read(source)
    if "system" in raw:  # for readers; a run is the same without it
        problems += system.problems(raw["system"])
        raw = {k: v for k, v in raw.items() if k != "system"}
    change = _with_sets({}, sets, problems)
    env = {"RAYFED_READY": str(READY), **os.environ}
    raw, change = (variables(part, env, problems) for part in (_with_sets(_shorthand(raw), sets, []), change))
    reading.check(raw, "config")
    if any(k in raw for k in STUDY_KEYS):
        if "seed" in change and raw.get("seeds"):  # in a file it may serve the arms by themselves
            seed = change["seed"]
            problems.append(unread.sentence("--set seed", seed, "seeds", raw["seeds"], f"--set seeds=[{seed}]"))
        return _study(raw, judge, problems)
    config = _overridden(raw, change, judge, problems)
    _raise(problems)
    assert config is not None
    return config


def _with_sets(raw: Any, sets: Sequence[str] | Mapping[str, Any], problems: list[str]) -> Any:
    """Return the config with overrides merged in, the later ones over the earlier."""
    if isinstance(sets, Mapping):
        reading.check(sets, "sets")
        for name, value in user_code.named(sets).items():
            raw = merge(raw, nested(name, value))
        return raw
    for s in sets:
        name, eq, text = s.partition("=")
        if not eq or not all(k.strip() for k in name.split(".")):
            problems.append(f"--set {s}: write it as a.b=value")
            continue
        try:
            change = nested(name.strip(), reading.parse(text, f"--set {s}") if text else None)
        except ConfigError as e:
            problems += e.problems
            continue
        raw = merge(raw, change)
    return raw


def nested(name: str, value: Any) -> Any:
    """Return `a.b` and c as {"a": {"b": c}}. ConfigError beyond the limits of a config."""
    for key in reversed(str(name).split(".")):
        value = {key: value}
    reading.check(value, "--set")
    return value


def variables(raw: Any, env: Mapping[str, str], problems: list[str], where: str = "") -> Any:
    """Return a config in which environment variables stand for `${NAME}`, and OTHER for `${NAME:-OTHER}` where it is not set.

    A variable that is not set and has no OTHER is a problem.
    """
    if isinstance(raw, Mapping):
        return {k: variables(v, env, problems, f"{where}.{k}" if where else str(k)) for k, v in raw.items()}
    if isinstance(raw, list):
        return [variables(v, env, problems, f"{where}.{i}") for i, v in enumerate(raw)]
    if not isinstance(raw, str):
        return raw
    # Where no brace follows, the pattern would be tried from every place to the end.
    known, brace, rest = raw.rpartition("}")
    problems += [
        f"{where}: {raw!r} needs the environment variable {n}, which is not set"
        for n in dict.fromkeys(m[1] for m in VARIABLE.finditer(known + brace) if m[2] is None) if n not in env
    ]  # fmt: skip
    return VARIABLE.sub(lambda m: env.get(m[1], m[0] if m[2] is None else m[2]), known + brace) + rest


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` over it, key by key; a section whose `name`, `kind` or `profile` changes is replaced whole."""
    values = isinstance(change, Mapping) and any(not isinstance(k, str) for k in change)  # {rank: share} is one value
    if values or not (isinstance(base, Mapping) and isinstance(change, Mapping)):
        key = next((k for k in ("name", *TAGS) if isinstance(base, Mapping) and k in base), "")
        if isinstance(change, str) and key:
            return dict(base) if base[key] == change else {key: change}
        return copy.deepcopy(change)
    if _families(base) != _families(change) and ("name" in base or "name" in change):  # one model, or several
        return copy.deepcopy(dict(change))
    if _families(base) and _families(change) and not change.keys() <= base.keys():
        return copy.deepcopy(dict(change))
    for key in ("name", *TAGS):
        if key in change and key in base and change[key] != base[key] and not _top(base):
            return copy.deepcopy(dict(change))
    return {**base, **{k: merge(base.get(k), v) for k, v in change.items()}}


def _families(section: Mapping[str, Any]) -> bool:
    """Return whether a section is several models by name, each with its share of the clients."""
    return all(isinstance(v, Mapping) for v in section.values()) and any("share" in v for v in section.values())


def _top(section: Mapping[str, Any]) -> bool:
    """Return whether a section is the whole config, whose `name` is only a name, or `task`, whose `kind` is one part of several."""
    return bool({"task", "rounds", "method", "data", "model"} & section.keys())


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    with refusing(f"config {str(source)!r}"):
        if not path.is_file():
            path = READY / f"{source}.yaml"
        there = path.is_file()
    if not there:
        hint = nearest(str(source), ready())
        raise ConfigError(
            f"config {str(source)!r}: no such file, and no ready config of that name{hint}; ready: {', '.join(ready())}"
        )
    user_code.adopt(path.parent)
    raw = reading.read_file(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a config is a mapping of keys, found {type(raw).__name__}")
    return raw


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


# -- studies -----------------------------------------------------------------------------------------------------------


def _study(raw: dict[str, Any], judge: Judge | None, problems: list[str]) -> Study:
    """Return the study. ConfigError with `problems` and what is wrong with its base, arms and claims."""
    base_raw = {k: v for k, v in raw.items() if k not in STUDY_KEYS}
    seeds = _seeds(raw, problems)
    arms_raw = raw.get("arms") or {"run": {}}
    if not isinstance(arms_raw, Mapping) or not all(v is None or isinstance(v, Mapping) for v in arms_raw.values()):
        problems.append("arms: a mapping of names to overrides is needed")
        arms_raw = {"run": {}}
    base = _config(base_raw, judge, problems)
    arms: dict[str, Config] = {}
    for arm, change in arms_raw.items():
        config = _arm(str(arm), base_raw, change or {}, judge, problems)
        if config is not None:
            arms[str(arm)] = config
    claims = _claims(raw.get("claim"), base, arms_raw, arms, problems)
    _raise(problems)
    assert base is not None
    return Study(base=base, raw=raw, seeds=tuple(seeds), arms=arms, claims=claims)


def _seeds(raw: Mapping[str, Any], problems: list[str]) -> list[int]:
    seeds = raw.get("seeds") or [raw.get("seed", 0)]
    if not (isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)):
        problems.append(f"seeds: {seeds!r} found, allowed: a list of whole numbers >= 0")
        return [0]
    if len(set(seeds)) < len(seeds):
        problems.append(f"seeds: {seeds} holds a seed twice")
    return seeds


def _arm(
    arm: str, base: Mapping[str, Any], change: Mapping[str, Any], judge: Judge | None, problems: list[str]
) -> Config | None:
    """Return the config of an arm, None if it is wrong; what is wrong with the base too is not repeated."""
    if not FOLDER.fullmatch(arm):
        problems.append(
            f"arms: {arm!r} found; an arm's name is a folder's: letters, digits and _ . + - = only, the first no dot"
        )
    if STUDY_FILES.fullmatch(arm.casefold()):
        problems.append(f"arms: {arm!r} found, a study's folder has a file or a folder of that name; choose another")
    if len(os.fsencode(f"{base.get('name', 'run')}-{arm}")) > LONGEST:
        problems.append(f"arms: {arm!r} found, allowed: at most {LONGEST} bytes with the config's name before it")
    if "seed" in change:
        problems.append(f"arms.{arm}.seed: {change['seed']!r} found; every arm runs with the study's `seeds`")
    found: list[str] = []
    config = _overridden(merge(base, change), change, judge, found)
    problems += [f"arms.{arm}: {p}" for p in found if p not in problems]
    return config


def _claims(
    raw: Any, base: Config | None, names: Mapping[str, Any], arms: Mapping[str, Config], problems: list[str]
) -> tuple[Claim, ...]:
    """Return the claims: one is written as a mapping, several as a list."""
    several = isinstance(raw, list)
    claims = []
    for i, one in enumerate(raw if several else [] if raw is None else [raw]):
        where = f"claim.{i}" if several else "claim"
        try:
            claim = Claim.model_validate(one)
        except ValidationError as e:
            problems += sentences(e, Claim, where)
            continue
        problems += _claim_problems(claim, where, base, names, arms)
        claims.append(claim)
    return tuple(claims)


def _claim_problems(
    claim: Claim, where: str, base: Config | None, names: Mapping[str, Any], arms: Mapping[str, Config]
) -> list[str]:
    """Return what is wrong with a claim about these arms; names: of all arms, also of wrong ones."""
    problems = [
        f"{where}.{k}: {v!r} is not an arm{nearest(v, names)}; arms: {', '.join(names)}"
        for k, v in (("better", claim.better), ("than", claim.than)) if v not in names
    ]  # fmt: skip
    if base is not None and claim.at > base.rounds:
        problems.append(f"{where}.at: {claim.at} found, the study has {base.rounds} rounds")
    known = {c.method.name for c in arms.values()}
    if claim.method is not None and len(arms) == len(names) and claim.method not in known:
        problems.append(
            f"{where}.method: {claim.method!r} is not the method of an arm{nearest(claim.method, known)}; "
            f"methods: {', '.join(sorted(known))}"
        )
    if problems:
        return problems
    for arm in dict.fromkeys((claim.better, claim.than)):
        c = arms.get(arm)
        if c is not None and (claim.at > c.rounds or not c.is_evaluated(claim.at)):
            problems.append(
                f"{where}.at: round {claim.at} of arm {arm!r} is not evaluated (evaluate.every: {c.evaluate.every}, "
                f"rounds: {c.rounds})"
            )
    return problems


# -- one config --------------------------------------------------------------------------------------------------------


def _config(raw: Mapping[str, Any], judge: Judge | None, problems: list[str]) -> Config | None:
    """Return the config, None if it is wrong; what is wrong goes to `problems`, also what is seen without a valid whole."""
    raw, found = _shorthand(raw), []
    config: Config | None = None
    wrong: set[str] = set()
    try:
        config = Config.model_validate(raw)
    except ValidationError as e:
        found += sentences(e, Config)
        config, wrong, more = _without_wrong(raw, e)
        found += more
    if judge is not None:
        found += judge(raw, config, wrong)
    problems += found
    return None if found else config


def _overridden(
    raw: Mapping[str, Any], change: Mapping[str, Any], judge: Judge | None, problems: list[str]
) -> Config | None:
    """Return the config of what `change` was merged into, as `_config` does.

    Settings that the change does not name and that nothing reads any more fall away, as those of another name or kind do.
    """
    raw = _shorthand(copy.deepcopy(dict(raw)))
    while True:
        found: list[str] = []
        config = _config(raw, judge, found)
        left = [p.setting.split(".") for p in found if isinstance(p, unread.Unread)] if change else []
        if not any([_delete(raw, path) for path in left if not _names(change, path)]):
            problems += found
            return config


def _names(change: Any, path: Sequence[str]) -> bool:
    """Return whether overrides give a value to the setting at a path."""
    for key in path:
        if not isinstance(change, Mapping):
            return True
        if key not in change:
            return False
        change = change[key]
    return True


def _without_wrong(raw: Mapping[str, Any], error: ValidationError) -> tuple[Config | None, set[str], list[str]]:
    """Return what is right in a wrong config, so that rules across keys are checked as well.

    That is the config with wrong keys at their defaults (None if it is not valid without them), the names of those keys, and
    what else is wrong in the rest.
    """
    rest = copy.deepcopy(dict(raw))
    wrong: set[str] = set()
    problems: list[str] = []
    if error.error_count() > NUMBER:
        return None, wrong, problems
    for _ in range(4):  # a section's own rule is only tried when its keys are right
        for e in error.errors(include_url=False):
            path = list(itertools.takewhile(lambda p: isinstance(p, str), e["loc"]))  # a list goes as a whole
            wrong.add(str(path[-1]) if path else "")
            if not _delete(rest, path):
                return None, wrong, problems
        try:
            return Config.model_validate(rest), wrong, problems
        except ValidationError as again:
            found = [s for s in sentences(again, Config) if not s.endswith(": missing")]
            problems += [s for s in found if not blames(s, wrong)]
            error = again
    return None, wrong, problems


def _delete(rest: dict[str, Any], path: Sequence[Any]) -> bool:
    """Delete the value at a path of keys; return whether there was one."""
    node: Any = rest
    for p in path[:-1]:
        node = node.get(p, node) if isinstance(node, Mapping) else node  # tags of unions are no keys
    if not path or not isinstance(node, dict) or path[-1] not in node:
        return False
    del node[path[-1]]
    return True


def _shorthand(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `adapter: none` as `adapter: {kind: none}`, and the same for every section with a kind or a name."""
    out = dict(raw)
    for path, key in SHORT:
        *above, last = path.split(".")
        node: Any = out
        for a in above:
            if isinstance(node, dict) and isinstance(node.get(a), Mapping):
                node[a] = dict(node[a])
            node = node.get(a) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(last), str):
            node[last] = {key: node[last]}
    return out
