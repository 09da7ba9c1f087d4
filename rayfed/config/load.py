"""From a file, a ready name or a mapping to a checked config: overrides, arms, and all problems at once."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rayfed import track
from rayfed.config import user_code
from rayfed.config.schema import LATER, Claim, Config, Study
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.method import Method

READY = Path(__file__).parent / "ready"
UNIONS = {"partition": "federation.partition", "adapter": "adapter"}  # sections whose keys depend on their kind
SHORT = (
    *((k, "name") for k in ("method", "task.data", "task.model")),
    *((k, "kind") for k in ("adapter", "aggregate")),
    *((f"federation.{k}", "kind") for k in ("partition", "groups", "participation", "holdout")),
    ("devices", "profile"),
)
STUDY_KEYS = ("seeds", "arms", "claim")
FOLDER = re.compile(r"[\w+=-][\w.+=-]*")
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def ready() -> list[str]:
    """Names of the ready configs."""
    return sorted(f.stem for f in READY.glob("*.yaml"))


def load(source: str | Path | Mapping[str, Any], sets: Sequence[str] | Mapping[str, Any]) -> Config | Study:
    """See `rayfed.config.schema.load_config`."""
    raw = _shorthand(user_code.named(copy.deepcopy(dict(source))) if isinstance(source, Mapping) else _read(source))
    problems: list[str] = []
    for name, value in user_code.named(sets).items() if isinstance(sets, Mapping) else ():
        raw = merge(raw, _nested(name, value))
    for s in () if isinstance(sets, Mapping) else sets:
        name, eq, text = s.partition("=")
        if not eq:
            problems.append(f"--set {s}: write it as a.b=value")
            continue
        try:
            change: Any = yaml.safe_load(text) if text else None
        except yaml.YAMLError as e:
            problems.append(f"--set {s}: not readable as YAML: {str(e).splitlines()[0]}")
            continue
        raw = merge(raw, _nested(name.strip(), change))
    raw = variables(raw, os.environ, problems)
    if not any(k in raw for k in STUDY_KEYS):
        config = _check(raw, problems)
        return _or_raise(config, problems)
    return _study(raw, problems)


def _nested(name: str, value: Any) -> Any:
    """`a.b` and c as {"a": {"b": c}}."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def variables(raw: Any, env: Mapping[str, str], problems: list[str], where: str = "") -> Any:
    """`${NAME}` in a value stands for the environment variable, `${NAME:-OTHER}` for OTHER where it is not set; else that is a problem."""
    if isinstance(raw, Mapping):
        return {k: variables(v, env, problems, f"{where}.{k}" if where else str(k)) for k, v in raw.items()}
    if isinstance(raw, list):
        return [variables(v, env, problems, f"{where}.{i}") for i, v in enumerate(raw)]
    if not isinstance(raw, str):
        return raw
    problems += [
        f"{where}: {raw!r} needs the environment variable {n}, which is not set"
        for n in dict.fromkeys(m[1] for m in VARIABLE.finditer(raw) if m[2] is None) if n not in env
    ]  # fmt: skip
    return VARIABLE.sub(lambda m: env.get(m[1], m[0] if m[2] is None else m[2]), raw)


def merge(base: Any, change: Any) -> Any:
    """`change` over `base`, key by key; a section whose `name` or `kind` changes is replaced whole."""
    values = isinstance(change, Mapping) and any(not isinstance(k, str) for k in change)  # {rank: share} is one value
    if values or not (isinstance(base, Mapping) and isinstance(change, Mapping)):
        if isinstance(base, Mapping) and isinstance(change, str) and base.keys() & {"name", "kind"}:
            key = "name" if "name" in base else "kind"
            return dict(base) if base[key] == change else {key: change}
        return copy.deepcopy(change)
    for key in ("name", "kind"):
        if key in change and key in base and change[key] != base[key] and not _top(base):
            return copy.deepcopy(dict(change))
    return {**base, **{k: merge(base.get(k), v) for k, v in change.items()}}


def _top(section: Mapping[str, Any]) -> bool:
    """The whole config has a `name` too; that one is only a name."""
    return "task" in section or "rounds" in section or "method" in section


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if not path.is_file():
        path = READY / f"{source}.yaml"
    if not path.is_file():
        hint = nearest(str(source), ready())
        raise ConfigError(
            f"config {str(source)!r}: no such file, and no ready config of that name{hint}; ready: {', '.join(ready())}"
        )
    user_code.adopt(path.parent)
    try:
        raw = yaml.load(path.read_text(), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{source}: not readable as YAML: {e}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: a config is a mapping of keys, found {type(raw).__name__}")
    return raw


class Loader(yaml.SafeLoader):
    """YAML whose mappings name each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def _or_raise(config: Any, problems: list[str]) -> Any:
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


def _study(raw: dict[str, Any], problems: list[str]) -> Study:
    base_raw = {k: v for k, v in raw.items() if k not in STUDY_KEYS}
    seeds = raw.get("seeds") or [base_raw.get("seed", 0)]
    if not (isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)):
        problems.append(f"seeds: {seeds!r} found, allowed: a list of whole numbers >= 0")
        seeds = [0]
    elif len(set(seeds)) < len(seeds):
        problems.append(f"seeds: {seeds} holds a seed twice")
    arms_raw = raw.get("arms") or {"run": {}}
    if not isinstance(arms_raw, Mapping) or not all(v is None or isinstance(v, Mapping) for v in arms_raw.values()):
        problems.append("arms: a mapping of names to overrides is needed")
        arms_raw = {"run": {}}
    base = _check(base_raw, problems)
    arms: dict[str, Config] = {}
    for arm, change in arms_raw.items():
        found: list[str] = []
        if not FOLDER.fullmatch(str(arm)):
            problems.append(
                f"arms: {str(arm)!r} found; an arm's name is a folder's: letters, digits and _ . + - = only, the first no dot"
            )
        if "seed" in (change or {}):
            problems.append(
                f"arms.{arm}.seed: {(change or {})['seed']!r} found; every arm runs with the study's `seeds`"
            )
        config = _check(merge(base_raw, change or {}), found)
        problems += [f"arms.{arm}: {p}" for p in found if p not in problems]
        if config is not None:
            arms[str(arm)] = config
    claims = _claims(raw.get("claim"), base, arms_raw, arms, problems)
    _or_raise(None, problems)
    assert base is not None
    return Study(base=base, raw=raw, seeds=tuple(seeds), arms=arms, claims=claims)


def _claims(
    raw: Any, base: Config | None, names: Mapping[str, Any], arms: Mapping[str, Config], problems: list[str]
) -> tuple[Claim, ...]:
    """One claim as a mapping, several as a list."""
    several = isinstance(raw, list)
    claims = []
    for i, one in enumerate(raw if several else [] if raw is None else [raw]):
        where, found = f"claim.{i}" if several else "claim", len(problems)
        try:
            claim = Claim.model_validate(one)
        except ValidationError as e:
            problems += _sentences(e, Claim, where)
            continue
        problems += [
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
        for arm in dict.fromkeys((claim.better, claim.than)) if len(problems) == found else ():
            c = arms.get(arm)
            if c is not None and (claim.at > c.rounds or (claim.at % c.evaluate.every and claim.at != c.rounds)):
                problems.append(
                    f"{where}.at: round {claim.at} of arm {arm!r} is not evaluated (evaluate.every: {c.evaluate.every}, "
                    f"rounds: {c.rounds})"
                )
        claims.append(claim)
    return tuple(claims)


def _check(raw: dict[str, Any], problems: list[str]) -> Config | None:
    """The config, or None; what is wrong goes to `problems`, also what can be seen without a valid whole."""
    raw = _shorthand(raw)
    later = _not_yet(raw)
    problems += later
    before = len(problems)
    told = {p.split(":")[0].removesuffix(".kind").removesuffix(".profile") for p in later}
    try:
        config: Config | None = Config.model_validate(raw)
        wrong: set[str] = set()
    except ValidationError as e:
        problems += [s for s in _sentences(e, Config) if not any(s.startswith(t) for t in told)]
        config, wrong, more = _without(raw, e)
        problems += more
    method = _parts(raw, problems)
    found: list[str] = []
    if config is not None:
        found += method(config).check(config) if method else []
        _rules(config, found)
    problems += [p for p in found if not _blames(p, wrong)]
    return config if len(problems) == before and not wrong and not later else None


def _without(raw: Mapping[str, Any], error: ValidationError) -> tuple[Config | None, set[str], list[str]]:
    """What is right in a wrong config, so that rules across keys are told too: the config with wrong keys at their
    defaults (None if it does not stand without them), the names of those keys, and what else the rest has wrong."""
    rest = copy.deepcopy(dict(raw))
    wrong: set[str] = set()
    problems: list[str] = []
    for _ in range(4):  # a section's own rule is only tried when its keys are right
        for e in error.errors(include_url=False):
            node: Any = rest
            path = list(itertools.takewhile(lambda p: isinstance(p, str), e["loc"]))  # a list goes as a whole
            for p in path[:-1]:
                node = node.get(p, node) if isinstance(node, Mapping) else node  # tags of unions are no keys
            last = str(path[-1]) if path else ""
            wrong.add(last)
            if not isinstance(node, dict) or last not in node:
                return None, wrong, problems
            del node[last]
        try:
            return Config.model_validate(rest), wrong, problems
        except ValidationError as again:
            problems += [s for s in _sentences(again, Config) if not _blames(s, wrong) and not s.endswith(": missing")]
            error = again
    return None, wrong, problems


def _blames(problem: str, wrong: set[str]) -> bool:
    """Whether a problem may only come from the default that stands for a wrong key."""
    return any(re.search(rf"\b{re.escape(w)}\b", problem) for w in wrong)


def _shorthand(raw: dict[str, Any]) -> dict[str, Any]:
    """`adapter: none` for `adapter: {kind: none}`, and the same for every section with a kind."""
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


def _not_yet(raw: Mapping[str, Any]) -> list[str]:
    """Kinds that are known and not built yet, refused by name."""
    out = []
    for where, names in LATER.items():
        node: Any = raw
        for key in where.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        for i, item in enumerate(node if isinstance(node, list) else [node]):
            at_key = next((k for k in ("kind", "profile") if isinstance(item, Mapping) and k in item), None)
            kind = item[at_key] if at_key and isinstance(item, Mapping) else item
            at = f"{where}.{at_key}" if at_key and not isinstance(node, list) else where
            if isinstance(kind, str) and kind in names:
                out.append(f"{at}: {kind!r} is not available yet{_available(where)}")
            elif isinstance(node, list) and kind not in kinds(where):
                hint = nearest(str(kind), (*kinds(where), *names))
                out.append(f"{at}.{i}: {kind!r} found{hint}{_available(where)}")
    return out


def _available(where: str) -> str:
    found = kinds(where)
    return f" (available: {', '.join(found)})" if found else " (available: none, leave the list empty)"


def kinds(where: str) -> list[str]:
    """What the schema allows as the kind (or profile, or name in a list) of a section, sorted; `where` like "federation.groups"."""
    model: Any = Config
    *above, last = where.split(".")
    for key in above:
        model = model.model_fields[key].annotation
    found: set[str] = set()
    waiting = [model.model_fields[last].annotation]
    while waiting:
        a = waiting.pop()
        if isinstance(a, type) and issubclass(a, BaseModel):
            waiting += [a.model_fields[k].annotation for k in ("kind", "profile") if k in a.model_fields]
        elif get_origin(a) is Literal:
            found |= {v for v in get_args(a) if isinstance(v, str)}
        else:
            waiting += get_args(a)
    return sorted(found)


def _parts(raw: Mapping[str, Any], problems: list[str]) -> Callable[[Config], Method] | None:
    """Data, model and method checked by their own modules, even when the rest is wrong; how to make the method."""
    from rayfed import data, models
    from rayfed.config.schema import Named

    task = raw.get("task")
    for key, check in (("data", data.check), ("model", models.check)):
        spec = task.get(key) if isinstance(task, Mapping) else None
        try:
            named = Named.model_validate(spec)
        except ValidationError:
            continue  # told by the schema
        if not VARIABLE.search(named.name):  # else told: what it stands for is not known
            problems += check(named)
    spec = raw.get("method")
    if not (isinstance(spec, Mapping) and isinstance(spec.get("name"), str)):
        return None
    from rayfed.methods import get

    try:
        cls = get(spec["name"])
    except ConfigError as e:
        problems += e.problems
        return None
    try:
        settings = cls.Settings(**{k: v for k, v in spec.items() if k != "name"})
    except ValidationError as e:
        problems += _sentences(e, cls.Settings, "method")
        return None
    return lambda config: cls(settings, config)


def _rules(c: Config, problems: list[str]) -> None:
    n = c.training_clients()
    if n < 1:
        problems.append(f"federation.holdout.fraction: {c.federation.holdout.fraction:g} leaves no client to train")
    elif isinstance(c.federation.per_round, int) and c.federation.per_round > n:
        problems.append(
            f"federation.per_round: {c.federation.per_round} found, allowed: at most {n} (the clients that are not held out)"
        )
    from rayfed import adapters

    if c.task.model.name.startswith("hf:"):
        from rayfed.models import pretrained

        with contextlib.suppress(ConfigError):  # told by the model's own check
            problems += pretrained.together(c)
            where = pretrained.folder(c.task.model.name)
            problems += adapters.check(c.adapter, pretrained.shapes(where), pretrained.architecture(where))
    elif c.adapter.kind not in ("none", "full"):
        problems.append(
            f"adapter.kind: {c.adapter.kind} found, task.model: {c.task.model.name} takes none; allowed: none, full"
        )
    from rayfed.adapters import ranks
    from rayfed.partition.groups import too_many

    problems += ranks.problems(c, max(n, 0))
    problems += too_many(c.federation.groups, max(n, 1))
    if c.init.from_ is not None:
        where = Path(c.init.from_)
        names = ("model.safetensors", "adapter_model.safetensors", "head.safetensors")
        if not any((p / n).is_file() for p in (where, where / "model") for n in names):
            problems.append(
                f"init.from: {c.init.from_!r} holds no model.safetensors (a run folder has it in model/ once the run has ended)"
            )
        elif c.task.model.name.startswith("hf:"):
            problems += adapters.start_problems(c)
    if c.resources.server.place == "any" and not c.resources.server.gpus:
        problems.append("resources.server.place: any needs resources.server.gpus > 0")
    if c.resources.server.place == "any" and "://" in c.storage.path:
        problems.append("resources.server.place: any found, allowed with a storage.path in object storage: driver")
    if (c.stop.metric is None) != (c.stop.at is None):
        problems.append("stop: metric and at belong together; set both or none")
    problems += track.missing(c.track)
    if isinstance(c.evaluate.clients, int) and c.evaluate.clients > c.federation.clients:
        problems.append(f"evaluate.clients: {c.evaluate.clients} found, there are {c.federation.clients} clients")


def _sentences(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Pydantic's findings as `a.b: what was found, what is allowed`."""
    out = []
    for e in error.errors(include_url=False):
        where = [str(p) for p in e["loc"] if p not in ("function-before", "function-after")]
        tag = next((w for w, above in zip(where[1:], where) if above in UNIONS and w in kinds(UNIONS[above])), None)
        path = [
            p
            for i, p in enumerate(where)
            if not (tag and p == tag and where[i - 1] in UNIONS)
            and not p.startswith(("literal[", "int", "float", "constrained"))
        ]
        name = ".".join(([prefix] if prefix else []) + path)
        if e["type"] == "extra_forbidden":
            known = _fields(model, path[:-1], [tag] if tag else where)
            suffix = f" of kind {tag}" if tag else ""
            out.append(f"{name}: unknown key{suffix}{nearest(path[-1], known)}; known: {', '.join(known)}")
        elif e["type"] == "missing":
            out.append(f"{name}: missing")
        elif e["type"] == "union_tag_invalid":
            ctx = e.get("ctx") or {}
            found, known = ctx.get("tag", ""), sorted(re.findall(r"'([^']*)'", str(ctx.get("expected_tags", ""))))
            out.append(f"{name}.kind: {found!r} found{nearest(str(found), known)}, allowed: {', '.join(known)}")
        elif e["type"] == "union_tag_not_found":
            out.append(f"{name}.kind: missing, allowed: {', '.join(kinds(name))}")
        elif e["type"] == "literal_error":
            allowed = str((e.get("ctx") or {}).get("expected", ""))
            hint = nearest(str(e["input"]), [a.strip("'") for a in allowed.replace(" or ", ", ").split(", ")])
            out.append(f"{name}: {e['input']!r} found{hint}, allowed: {allowed}")
        elif e["type"] == "value_error":
            # A section's own rule may name one of its keys first.
            for line in str(e["msg"]).removeprefix("Value error, ").splitlines():
                key, colon, rest = line.partition(": ")
                within = colon and key.split(".")[0] in _fields(model, path, [tag] if tag else where)
                out.append(f"{'.'.join([name, key] if name else [key])}: {rest}" if within else f"{name}: {line}")
        else:
            message = str(e["msg"]).replace("Input should be", "should be")
            out.append(f"{name}: {e['input']!r} found, {message[0].lower()}{message[1:]}")
    return list(dict.fromkeys(out))


def _fields(model: Any, path: Sequence[str], where: Sequence[str]) -> list[str]:
    """Known keys of the section at `path`."""
    for key in path:
        field = model.model_fields.get(key) or next((f for f in model.model_fields.values() if f.alias == key), None)
        kinds = [
            k
            for k in ((field.annotation, *get_args(field.annotation)) if field else ())
            if isinstance(k, type) and issubclass(k, BaseModel)
        ]
        if not kinds:
            return []
        model = next((k for k in kinds if k.__name__.lower() in where), kinds[0])
    return [f.alias or n for n, f in model.model_fields.items()]
