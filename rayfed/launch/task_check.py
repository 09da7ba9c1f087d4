"""Whether a run's data, kind of task, metrics and method fit one another, judged before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import adversarial, augment, models, task
from rayfed.config import unread
from rayfed.config.own_errors import contained, describe
from rayfed.engine import scoring
from rayfed.errors import ConfigError, nearest
from rayfed.models import families

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.partition import Federation

FORMS = {
    "classes": "one class for each row",
    "labels": "several labels for each row, y (n, L)",
    "numbers": "numbers for each row, y of floats",
    "records": "instructions with answers",
    "items": "items that users took",
    "problems": "problems, each with its objectives",
    "pairs": "pairs of questions and passages",
    "modalities": "rows of several modalities",
}


def problems(config: Config, federation: Federation, method: Method) -> list[str]:
    """Return what does not fit: the data's targets and columns, the metrics that are asked for, and what the method needs."""
    try:
        with contained():
            cls = task.of(federation.task)
    except ConfigError as e:
        return e.problems
    found = []
    if federation.form not in cls.reads:
        fitting = [n for n in task.ready() if federation.form in task.get(n).reads]
        found.append(
            f"task.kind: {federation.task} found, task.data holds {FORMS[federation.form]}; allowed: {', '.join(['auto', *fitting])}"
        )
    there = ", ".join(federation.columns) or "none"
    found += [
        f"task.kind: {federation.task} reads column {n!r}, which task.data does not have{nearest(n, federation.columns)}; it has: {there}"
        for n in cls.columns
        if n not in federation.columns
    ]
    found += [
        f"{key}: {m.name} found, task.kind: {federation.task} learns with {', '.join(cls.models)}, or a network of your own"
        for key, m in families.models(config.task.model).items()
        if m.name in models.KNOWN and m.name not in cls.models
    ]
    found += augment.fits(config, federation.kind, cls.loss is task.Task.loss, federation.input_shape)
    if config.evaluate.adversary is not None:
        found += adversarial.misfit("evaluate.adversary", config.evaluate.adversary, federation)
    smoothing = config.local.label_smoothing
    if smoothing and not {"classes", "tokens"} & cls.offers:
        allowed = "a task of one class for each row, or of instructions"
        found.append(unread.sentence("local.label_smoothing", smoothing, "task.kind", federation.task, allowed))
    return found or [
        *_kind_problems(cls, config, federation),
        *needs_problems(config, federation, method),
        *_metric_problems(config, federation),
    ]


def _kind_problems(cls: type[task.Task], config: Config, federation: Federation) -> list[str]:
    try:
        with contained():
            return cls.problems(config, federation)
    except Exception as e:
        return [f"task.kind: {federation.task}.problems raised {describe(e)}"]


def _metric_problems(config: Config, federation: Federation) -> list[str]:
    try:
        return scoring.asked(config, federation)[1]
    except Exception as e:  # of own measures
        return [f"task.kind: {federation.task}.measured raised {describe(e)}"]


def needs_problems(config: Config, federation: Federation, method: Method) -> list[str]:
    """Return what a method needs of its task and the task does not offer, by names."""
    offered = task.offers(federation)
    name, found = config.method.name, []
    for need in sorted(method.needs - offered):
        column = need.startswith("columns:")
        if not column and need not in task.OFFERS:
            found.append(f"method.name: {name} needs {need!r}, which no task offers{nearest(need, task.OFFERS)}")
            continue
        about = "" if column else f" ({task.OFFERS[need]})"
        offers = ", ".join(sorted(offered)) or "nothing"
        found.append(
            f"method.name: {name} needs {need}{about}; the task offers: {offers}{_kinds_with(need, federation)}"
        )
    return found


def _kinds_with(need: str, federation: Federation) -> str:
    """Return which other ready kinds offer what is needed, as the end of a sentence."""
    kinds = [n for n in task.ready() if need in task.get(n).offers and n != federation.task]
    reached = [n for n in kinds if federation.form in task.get(n).reads]
    return f"; of task.kind {', '.join(reached or kinds)} it is offered" if kinds else ""
