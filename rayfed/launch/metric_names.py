"""Which metrics the rows of a run can have, known before it starts: a name that no row can have would stop, judge or rank nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayfed import metrics
from rayfed import task as tasks
from rayfed.engine import ruling, scoring
from rayfed.errors import nearest
from rayfed.method import Method
from rayfed.models import families
from rayfed.transform.checks import metrics as transform_metrics

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.partition import Federation

COUNTS = tuple(n for n in metrics.OTHERS if n.partition("/")[0] in ("bytes", "ray", "clients", "actors"))
TIMES = ("time/round", "time/evaluate")


def known(method: Method, federation: Federation) -> list[str]:
    """Return the metrics that rows of a run can have: scores first, then what the method logs, then counts and times."""
    clusters = type(method).clusters is not Method.clusters
    tests, n = federation.test.sizes() > 0, federation.population
    scopes = []
    if len(federation.pooled_test) and (method.universal or tasks.of(federation.task).pooled):
        scopes.append("global")
    for scope, there in (
        ("personal", tests[:n].any()),
        ("cluster", clusters and type(method).experts is not Method.experts and tests[:n].any()),
        ("local", tests[:n].any() and (method.trains or method.config.evaluate.finetune_epochs)),
        ("unseen", tests[n:].any()),
        ("backdoor", federation.backdoor is not None),
        ("robust", method.config.evaluate.adversary is not None and tests[:n].any()),
    ):
        scopes += [scope, f"{scope}_ex"] if there else []
    scopes += ["retained"] if len(federation.retained) else []
    config = method.config
    family = families.drawn(config, n, federation.clients)
    for number, name in enumerate(families.names(config)):
        scope = metrics.family_scope(name)
        scopes += [scope, f"{scope}_ex"] if family is not None and tests[:n][family[:n] == number].any() else []
    measured = scoring.measures(config, federation, scoring.asked(config, federation)[0])
    without = {"backdoor", "robust", "retained"} | (set() if config.evaluate.finetune_epochs else {"local"})
    of_sets = [s for s in scopes if s.removesuffix("_ex") not in without]
    names = [f"{m.name}/{s}" for s in scopes for m in measured if m.of == "rows" or s in of_sets]
    tasks_so_far = [metrics.task_scope(k + 1) for k in range(len(federation.stages))]
    scopes = [s for of in tasks_so_far for s in (of, f"{of}_ex")] + ([*metrics.OF_STREAM] if tasks_so_far else [])
    names += [f"{m.name}/{s}" for s in scopes for m in measured if m.of == "rows"]
    names += ["clusters/count"] if clusters else []
    names += ["clusters/ari"] if clusters and int((federation.group[:n] >= 0).sum()) > 1 else []
    simulated = ["time/simulated"] if method.config.devices.profile != "none" else []
    own = [*method.logs, *ruling.names(method), *transform_metrics(method.config)]
    return list(dict.fromkeys([*names, *own, *COUNTS, *TIMES, *simulated]))


def problem(where: str, metric: str, method: Method, federation: Federation) -> str | None:
    """Return a sentence where no row can have the metric that a setting names; None where one can. where: the setting."""
    there = known(method, federation)
    if metric in there:
        return None
    scores = [n for n in there if n not in COUNTS and n not in TIMES and not n.endswith("_ex")]
    shown = ", ".join(scores) or ", ".join(there)
    return (
        f"{where}: {metric!r} found, which no round of this run measures{nearest(metric, there)}; there is {shown} "
        "(and what a method logs, if its `logs` name it)"
    )


def settings_problems(config: Config, method: Method, federation: Federation) -> list[str]:
    """Return what is wrong with `stop` and `storage.best`: a metric that no row can have, or a value that it cannot reach."""
    metric, at, best = config.stop.metric, config.stop.at, config.storage.best
    named = {"stop.metric": metric, "storage.best": best}
    if wrong := [p for key, m in named.items() if m is not None and (p := problem(key, m, method, federation))]:
        return wrong
    if metric is None or at is None:
        return []
    meaning = metrics.meaning(metric, method.logs)
    if meaning is not None and meaning.unit == "fraction" and not 0 <= at <= 1:
        return [f"stop.at: {at:g} found, {metric} is a fraction; allowed: 0 to 1"]
    return []
