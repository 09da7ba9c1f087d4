"""A config judged before anything starts: whether the parts that it names exist, and whether they fit one another.

All that is wrong is reported at once: what the schema finds, and what data, models, adapters, the method and the trackers find.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rayfed import (
    adapters,
    aggregate,
    attack,
    augment,
    clock,
    cut,
    data,
    methods,
    models,
    optimizers,
    participation,
    selection,
    set_metrics,
    track,
    visits,
)
from rayfed import task as tasks
from rayfed.adapters import ranks
from rayfed.adapters.start import start_problems
from rayfed.config import unread
from rayfed.config.load import LONGEST, VARIABLE, load_config
from rayfed.config.own_errors import contained, describe
from rayfed.config.problems import blames, sentences
from rayfed.config.schema import Model, Named
from rayfed.config.user_function import check_function
from rayfed.config.watchdog import say_if_slow
from rayfed.errors import ConfigError, nearest, refusing
from rayfed.execute.tuning import compiler
from rayfed.models import families, folder, pretrained, private_buffers
from rayfed.partition import retained
from rayfed.partition.groups import too_many
from rayfed.storage import object_store
from rayfed.storage.run_folder import model_damage
from rayfed.transform import checks

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study
    from rayfed.method import Method

STARTS = ("model.safetensors", "adapter_model.safetensors", "head.safetensors")  # files that a run can start from


def load_request(
    source: str | Path | Mapping[str, Any], sets: Sequence[str] | Mapping[str, Any] = ()
) -> Config | Study:
    """Return the config or the study of a file, a ready name or a mapping, fit to be run; arguments as in `load_config`.

    ConfigError lists everything that is wrong with it.
    """
    return load_config(source, sets, judge)


def judge(raw: Mapping[str, Any], config: Config | None, wrong: Collection[str]) -> list[str]:
    """Return what is wrong with a config beyond the schema.

    raw: as it is written, since data, model and method are judged even where the rest is wrong; config: None where it has no
    valid form; wrong: keys whose defaults stand for wrong values in it, and about which nothing more is said.
    """
    make_method, problems = check_method(raw)
    problems = check_task(raw) + problems + checks.settings_problems(raw)
    if config is None:
        return problems
    rules: list[str] = []
    if make_method is not None:
        rules = asked(raw["method"]["name"], "check", lambda: make_method(config).check(config))
    cls = methods.get(config.method.name) if make_method is not None else None
    rules = [*rules, *aggregate.problems(config, cls), *attack.problems(config, cls), *augment.problems(config, cls)]
    if cls is not None:
        rules = [*rules, *checks.rules(config, cls), *checks.example_rules(config, cls)]
    rules = [*rules, *unread.sentences(config)]
    if cls is not None and config.local.buffers == "private":
        rules = rules + private_buffers.problems(cls)
    rules = rules + check_rules(config)
    return problems + [p for p in rules if not blames(p, wrong)]


def _found(section: str, judge: Callable[[], list[str]]) -> list[str]:
    """Return what a part finds wrong, its own error being a finding too: about a file, or a value that it has not thought of."""
    try:
        with refusing(section):
            return judge()
    except ConfigError as e:
        return e.problems


def check_task(raw: Mapping[str, Any]) -> list[str]:
    """Return what data and model find wrong with `task.data` and `task.model`."""
    task = raw.get("task")
    problems: list[str] = []
    for key, check in (("data", data.check), ("model", models.check)):
        spec = task.get(key) if isinstance(task, Mapping) else None
        try:
            named = (Model if key == "model" else Named).model_validate(spec)
        except ValidationError:
            continue  # the schema reports it
        if not VARIABLE.search(named.name):  # a variable that is not set is reported already
            problems += _found(f"task.{key}", partial(check, named))
    return problems + _check_kind(task.get("kind", "auto") if isinstance(task, Mapping) else "auto")


def _check_kind(spec: Any) -> list[str]:
    """Return what is wrong with `task.kind`: its name, or its own settings."""
    try:
        named = Named.model_validate(spec)
    except ValidationError:
        return []  # the schema reports it
    if named.name == "auto":
        return [f"task.kind.{o}: belongs to a kind; name it (rayfed tasks)" for o in named.options]
    try:
        with refusing("task.kind"):
            cls = tasks.get(named.name)
    except ConfigError as e:
        return e.problems
    try:
        with contained():
            cls.Settings(**named.options)
    except ValidationError as e:
        return sentences(e, cls.Settings, "task.kind")
    except Exception as e:
        return [f"task.kind: the settings of {named.name} raised {describe(e)}"]
    return []


def check_method(raw: Mapping[str, Any]) -> tuple[Callable[[Config], Method] | None, list[str]]:
    """Return what makes the method for a config, None if its name or its settings are wrong, and what is wrong with them."""
    spec = raw.get("method")
    if not (isinstance(spec, Mapping) and isinstance(spec.get("name"), str)):
        return None, []  # the schema reports it
    try:
        with refusing("method.name"):
            cls = methods.get(spec["name"])
    except ConfigError as e:
        return None, e.problems
    if lacking := visits.undecorated(cls):
        return None, [
            f"method.name: {cls.__name__}.{n} has to be a visit ({why}); decorate it with @visit"
            for n, why in lacking.items()
        ]
    try:
        with contained():
            settings = cls.Settings(**{k: v for k, v in spec.items() if k != "name"})
    except ValidationError as e:
        return None, sentences(e, cls.Settings, "method")
    except Exception as e:
        return None, [f"method: the settings of {spec['name']} raised {describe(e)}"]
    return lambda config: cls(settings, config), [*unread.sentences(settings, "method")]


def asked(method: str, what: str, ask: Callable[[], list[str]]) -> list[str]:
    """Return what a method's `check` or `fits` finds wrong, and, where it raises, that.

    method: its name in the config; what: which of them; ask: calls it.
    """
    try:
        with contained(), say_if_slow(f"{what} of {method}"):
            return ask()
    except ConfigError as e:
        return e.problems
    except Exception as e:
        return [f"method.name: {what} of {method} raised {describe(e)}"]


def check_rules(config: Config) -> list[str]:
    """Return what is wrong across the keys of a config."""
    n = config.training_clients()
    return [
        *_check_clients(config, n),
        *_found("federation.participation", lambda: participation.problems(config)),
        *_found("devices", lambda: clock.check(config)),
        *selection.problems(config),
        *cut.problems(config),
        *_found("adapter", lambda: _check_adapter(config)),
        *ranks.problems(config, max(n, 0)),
        *families.problems(config, max(n, 0)),
        *too_many(config.federation.groups, max(n, 1)),
        *_found("init.from", lambda: _check_start(config)),
        *_found("storage.path", lambda: _check_places(config)),
        *track.missing(config.track),
        *_check_evaluation(config),
        *_check_compiled(config),
        *_found("local.optimizer", lambda: _check_optimizer(config)),
    ]


def _check_compiled(config: Config) -> list[str]:
    """Return why nothing could be compiled here."""
    if config.resources.executor != "compiled":
        return []
    reason = compiler.missing()
    if not reason and config.resources.replay == "off":
        reason = "resources.replay: off found, and a step has to be recorded to be compiled"
    return (
        [f"resources.executor: compiled found, but {reason}. Allowed here: auto, loop, vmap, debug"] if reason else []
    )


def _check_optimizer(config: Config) -> list[str]:
    """Return what is wrong with an optimizer that is named by its path."""
    found, executor = optimizers.problems(config.local.optimizer), config.resources.executor
    if optimizers.is_own(config.local.optimizer) and config.resources.vectorised:
        found.append(f"resources.executor: {executor} found, but {optimizers.ALONE}. Allowed here: auto, loop, debug")
    return found


def _check_clients(config: Config, n: int) -> list[str]:
    """Return what is wrong with the numbers of clients; n: those that can take part."""
    f = config.federation
    if n < 1:
        return [f"federation.holdout.fraction: {f.holdout.fraction:g} leaves no client to train"]
    if isinstance(f.per_round, int) and f.per_round > n:
        return [f"federation.per_round: {f.per_round} found, allowed: at most {n} (the clients that are not held out)"]
    kind = f.participation.kind
    if kind in ("poisson", "cyclic") and config.per_round() == n:
        allowed = f"per_round below {n}"
        return [unread.sentence("federation.participation.kind", kind, "federation.per_round", "all clients", allowed)]
    return []


def _check_adapter(config: Config) -> list[str]:
    model, kind = config.task.model.name, config.adapter.kind
    problems: list[str] = []
    towers = folder.is_pair(model) and config.task.kind.name in ("auto", "towers")
    if towers and kind not in ("none", "full", "prompts"):
        problems.append(f"adapter.kind: {kind} found, task.model: {model} has two towers; allowed: prompts, none, full")
    elif kind == "prompts" and not towers:
        problems.append(
            f"adapter.kind: prompts found, task.model: {model} has no two towers; allowed: two_tower, hf:DIR of a "
            f"{', '.join(folder.PAIRS[:-1])} or {folder.PAIRS[-1]} model with task.kind: towers or auto"
        )
    elif model.startswith("hf:") and not towers:
        with contextlib.suppress(ConfigError):  # the model's own check reports it
            problems += pretrained.check_config(config)
            where = folder.locate(model)
            problems += adapters.check(config.adapter, folder.shapes(where), folder.architecture(where))
    elif not towers and kind not in ("none", "full"):
        problems.append(f"adapter.kind: {kind} found, task.model: {model} takes none; allowed: none, full")
    return problems


def _check_start(config: Config) -> list[str]:
    if config.init.from_ is None:
        return []
    where = Path(config.init.from_)
    if not any((p / n).is_file() for p in (where, where / "model") for n in STARTS):
        return [
            f"init.from: {config.init.from_!r} holds no model.safetensors (a run folder has it in model/ once the run has ended)"
        ]
    if damage := model_damage(where):
        return [f"init.from: {config.init.from_!r} is damaged: {damage}; rayfed resume {where} writes it again"]
    return start_problems(config) if config.task.model.name.startswith("hf:") else []


def _check_places(config: Config) -> list[str]:
    """Return what is wrong with where the server works and where the run is stored."""
    server, path = config.resources.server, config.storage.path
    problems = []
    if config.resources.visits == "server" and config.failures.client_timeout_s is not None:
        problems.append("resources.visits: server found, allowed with failures.client_timeout_s: actors, auto")
    if server.place == "any" and not server.gpus:
        problems.append("resources.server.place: any needs resources.server.gpus > 0")
    if object_store.is_uri(path) and (wrong := object_store.uri_problem(path)):
        problems.append(f"storage.path: {wrong}")
    elif not object_store.is_uri(path) and any(len(os.fsencode(name)) > LONGEST for name in Path(path).parts):
        problems.append(f"storage.path: {path!r} found, allowed: names of at most {LONGEST} bytes")
    elif server.place == "any" and object_store.is_uri(path):
        problems.append("resources.server.place: any found, allowed with a storage.path in object storage: driver")
    return problems


def _check_evaluation(config: Config) -> list[str]:
    problems: list[str] = []
    asked, clients = config.evaluate.clients, config.federation.clients
    model, buffers = config.task.model.name, config.local.buffers
    if buffers != "average" and model in models.KNOWN:  # none of them writes any
        allowed = "a model with running statistics or counters"
        problems.append(unread.sentence("local.buffers", buffers, "task.model", model, allowed))
    if (config.stop.metric is None) != (config.stop.at is None and config.stop.patience is None):
        problems.append("stop: metric belongs together with at or patience; set it and one of them, or none")
    problems += _check_metrics(config.evaluate.metrics or ())
    if (other := config.evaluate.retained) is not None and not VARIABLE.search(other.name):
        problems += retained.named(_found(retained.KEY, partial(data.check, other)))
    if isinstance(asked, int) and asked > clients:
        problems.append(f"evaluate.clients: {asked} found, there are {clients} clients")
    return problems


def _check_metrics(names: Sequence[str]) -> list[str]:
    """Return what is wrong with names of `evaluate.metrics`; whether the task can give them shows once its data is read."""
    known, problems = [n for n, _ in set_metrics.names()], []
    for name in names:
        if set_metrics.is_own(name):
            problems += check_function(name, "evaluate.metrics", (), 2)
        elif name not in known:
            problems.append(f"evaluate.metrics: {name!r} is unknown{nearest(name, known)}; known: {', '.join(known)}")
    return problems
