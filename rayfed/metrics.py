"""Metrics: sums that can be added in any grouping, and what each name means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rayfed.errors import ConfigError


class Mean(NamedTuple):
    """A mean as a sum and a weight, so that `a + b` is the mean over both."""

    total: float = 0.0
    weight: float = 0.0

    def __add__(self, other: object) -> Mean:
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def value(self) -> float | None:
        """The mean; None if nothing was counted."""
        return self.total / self.weight if self.weight else None

    @classmethod
    def of(cls, parts: Iterable[Mean]) -> Mean:
        """Return the sum of many, exactly rounded, so that their order does not matter."""
        parts = list(parts)
        return cls(math.fsum(p.total for p in parts), math.fsum(p.weight for p in parts))


def scope(name: str, rows: Mapping[Any, Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of a scope from each client's sums `{"n": examples, NAME: sum over its examples}`.

    name: the scope; rows: client -> its sums. `NAME/SCOPE` is the mean over clients of their means, `NAME/SCOPE_ex` the mean
    over all examples. Clients without examples do not count; if no client has examples, there is no metric.
    """
    counted = [r for r in rows.values() if r["n"] > 0]
    out: dict[str, float] = {}
    for metric in dict.fromkeys(k for r in counted for k in r if k != "n"):
        scored = [r for r in counted if metric in r]
        out[f"{metric}/{name}"] = math.fsum(r[metric] / r["n"] for r in scored) / len(scored)
        out[f"{metric}/{name}_ex"] = math.fsum(r[metric] for r in scored) / math.fsum(r["n"] for r in scored)
    return out


def ari(labels_a: Sequence[int], labels_b: Sequence[int]) -> float:
    """Return the adjusted Rand index of two clusterings of the same items: 1 if equal up to names, about 0 by chance."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels_a, labels_b))


# -- what the names mean -----------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """A metric for a reader: what it is, its unit (or what its values say), averaged over what."""

    text: str
    unit: str
    over: str = "-"


class Measure(NamedTuple):
    """What a task measures: its name, which way is better, its unit, and what it is in a sentence.

    better: higher | lower; of: rows, where it is the mean of a number for each row; set, where it is had from all rows at once, of
    one client or of several together.
    """

    name: str
    better: str
    unit: str
    text: str
    of: str = "rows"


MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure("accuracy", "higher", "fraction", "share of correct predictions"),
        Measure("loss", "lower", "nats", "cross-entropy"),
        Measure(
            "exact",
            "higher",
            "fraction",
            "share of answers whose tokens are all the most probable ones, as greedy decoding would give them",
        ),
        Measure(
            "rouge_l",
            "higher",
            "fraction",
            "ROUGE-L of what greedy decoding writes: F1 of the longest common subsequence of tokens",
        ),
        Measure(
            "token_f1",
            "higher",
            "fraction",
            "F1 of the tokens that what greedy decoding writes shares with the true answer",
        ),
        Measure("perplexity", "lower", "-", "exp of the mean loss", "set"),
        Measure("mae", "lower", "unit of the target", "mean absolute error"),
        Measure("rmse", "lower", "unit of the target", "root mean squared error", "set"),
        Measure("r2", "higher", "1 = exact, 0 = the mean", "coefficient of determination", "set"),
        Measure("auroc", "higher", "fraction", "area under the ROC curve, mean over classes or labels", "set"),
        Measure("ap", "higher", "fraction", "average precision, mean over classes or labels", "set"),
        Measure("f1", "higher", "fraction", "F1, mean over classes or labels (macro)", "set"),
        Measure(
            "balanced_accuracy",
            "higher",
            "fraction",
            "share of correct predictions of each class, mean over classes",
            "set",
        ),
        Measure("ece", "lower", "fraction", "expected calibration error of the most probable class, 15 bins", "set"),
        Measure("brier", "lower", "-", "Brier score: squared distance of the probabilities from the truth", "set"),
        Measure("hypervolume", "higher", "product of the objectives' units", "hypervolume of the found front", "set"),
    )
}


FAMILIES = ("recall-", "confusion-")  # of metrics, a class or a pair of classes each: too many to be drawn
READY_MEASURES: Mapping[str, Measure] = MappingProxyType(dict(MEASURES))  # those that every reader of a run knows


def declare(measures: Iterable[Measure]) -> None:
    """Make known in this process which way measures of own tasks and own metrics are better.

    ConfigError where a name is known already and better the other way: rows of two runs could not be compared.
    """
    for m in measures:
        known = MEASURES.setdefault(m.name, m)
        if known.better != m.better:
            raise ConfigError(
                f"measure {m.name!r}: {m.better} is better found, elsewhere {known.better} is; allowed: another name"
            )


SCOPES: dict[str, tuple[str, str]] = {
    "global": ("the one server or universal model", "examples of the pooled test data"),
    "personal": ("what each client is served", "clients, each on its own test split"),
    "cluster": ("the expert of the client's cluster", "clients, each on its own test split"),
    "local": ("after local training", "clients, each on its own test split"),
    "unseen": ("what held-out clients are served", "held-out clients, each on its own test split"),
    "backdoor": (
        "what honest clients are served, on test rows with an attacker's trigger, of which the attacker's class is correct",
        "honest clients, each on marked copies of its own test rows of other classes",
    ),
    "robust": (
        "what each client is served, on test rows as they are or moved against it, whichever is worse (evaluate.adversary)",
        "clients, each on its own test split",
    ),
    "retained": (
        "the one server or universal model, of a method without one what clients are served",
        "test rows of another task (evaluate.retained)",
    ),
}
OF_FAMILY = "family-"  # begins the scope of what clients of a family of models are served
OF_TASK = "task-"  # begins the scope of a task of a stream
TASKS, BACKWARD, FORGETTING = "tasks", "backward", "forgetting"  # scopes of all tasks of a stream so far
OF_STREAM = {
    TASKS: (
        "what each client is served",
        "tasks of the stream so far, of each the mean over clients on their test rows of it",
    ),
    BACKWARD: (
        "what each client is served, minus what it was at the end of the task",
        "tasks before the present one, of each the mean over clients",
    ),
    FORGETTING: (
        "how much worse what each client is served is than at its best end of a task",
        "tasks before the present one, of each the mean over clients",
    ),
}


def family_scope(name: str) -> str:
    """Return the scope of what the clients of a family are served, `family-small`."""
    return OF_FAMILY + name


def task_scope(number: int) -> str:
    """Return the scope of a task of a stream, `task-1`."""
    return f"{OF_TASK}{number}"


def scoped(where: str) -> tuple[str, str] | None:
    """Return whose model a scope scores, and on whose data; None of what is no scope."""
    if where.startswith(OF_FAMILY):
        return f"what clients with the model {where.removeprefix(OF_FAMILY)} are served", SCOPES["personal"][1]
    if where.removeprefix(OF_TASK).isdecimal() and where.startswith(OF_TASK):
        number = where.removeprefix(OF_TASK)
        return "what each client is served", f"clients, each on its own test rows of the stream's task {number}"
    return SCOPES.get(where) or OF_STREAM.get(where)


OTHERS: dict[str, Meaning] = {
    "clusters/ari": Meaning("adjusted Rand index of found and planted clusters", "1 = equal", "clients that have both"),
    "clusters/count": Meaning("clusters in use", "clusters", "-"),
    "bytes/up": Meaning("sent by clients in a deployment, encoded", "bytes per round", "sum over visits"),
    "bytes/down": Meaning("sent to clients in a deployment, encoded", "bytes per round", "sum over visits"),
    "bytes/cut/up": Meaning(
        "of bytes/up, what crossed the cuts of a split network", "bytes per round", "sum over visits"
    ),
    "bytes/cut/down": Meaning("of bytes/down, what crossed its cuts", "bytes per round", "sum over visits"),
    "ray/bytes": Meaning("moved between processes here", "bytes per round", "sum"),
    "ray/bytes/up": Meaning("moved here from actors", "bytes per round", "sum"),
    "ray/bytes/down": Meaning("moved here to actors", "bytes per round", "sum"),
    "time/round": Meaning("wall time of a round without evaluation", "s", "-"),
    "time/evaluate": Meaning("wall time of the evaluation", "s", "-"),
    "time/simulated": Meaning("virtual time since the start, by the device profiles", "s", "-"),
    "privacy/epsilon": Meaning("privacy spent so far", "epsilon at the set delta", "-"),
    "privacy/epsilon_examples": Meaning(
        "privacy of one example spent so far, by training (DP-SGD)", "epsilon at the set delta", "-"
    ),
    "transforms/clip": Meaning("norm to which updates are clipped, after the round", "norm", "-"),
    "clients/visits": Meaning("client visits", "visits per round", "sum"),
    "clients/dropped": Meaning("visits that failed and were left out", "visits per round", "sum"),
    "clients/per_second": Meaning("client visits per second of wall time", "1/s", "-"),
    "actors/restarts": Meaning("actors replaced since the start", "actors", "sum"),
    "aggregate/skipped": Meaning(
        "means that the rule of aggregation could not judge: too few replies", "means per round", "sum"
    ),
    "aggregate/attackers": Meaning(
        "share of a rule's weights that attackers' updates got", "fraction", "means of a round"
    ),
}

NO_LOGS: Mapping[str, tuple[str, str]] = MappingProxyType({})


def meaning(
    metric: str,
    logs: Mapping[str, tuple[str, str]] = NO_LOGS,
    measures: Mapping[str, Measure] = MEASURES,
) -> Meaning | None:
    """Return what a metric is, or None for a name that neither rayfed nor `logs` knows.

    logs: a method's own names, as `Method.logs` has them: name -> (sentence, unit); measures: of the run's task, by name.
    """
    if metric in OTHERS:
        return OTHERS[metric]
    name, _, where = metric.partition("/")
    examples = where.endswith("_ex")
    found = scoped(where.removesuffix("_ex"))
    if found is None:
        return Meaning(*logs[metric]) if metric in logs else None
    measure = measures.get(name) or MEASURES.get(name)
    text, unit = (measure.text, measure.unit) if measure else (name, "-")
    over = found[1].replace("clients, each", "all examples of clients,") if examples else found[1]
    return Meaning(f"{text}: {found[0]}", unit, over)


def has_scores(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a metric with a scope was measured in some row."""
    names = {name for row in rows for name, value in row.items() if value is not None}
    return any(name.partition("/")[2].removesuffix("_ex") in SCOPES for name in names)


ROUNDS_TO = re.compile(r"rounds to (\d+(?:\.\d+)?) of (\S+)")


def rounds_to(metric: str) -> tuple[float, str] | None:
    """Return (0.8, "accuracy/global") of "rounds to 0.8 of accuracy/global"; None of every other metric."""
    found = ROUNDS_TO.fullmatch(metric)
    return (float(found[1]), found[2]) if found else None


MEAN_OF_LAST = re.compile(r"mean of the last (\d+) of (\S+)")


def mean_of_last(metric: str) -> tuple[int, str] | None:
    """Return (10, "accuracy/global") of "mean of the last 10 of accuracy/global"; None of every other metric."""
    found = MEAN_OF_LAST.fullmatch(metric)
    return (int(found[1]), found[2]) if found else None


def measured(metric: str) -> str:
    """Return what rounds measure: the metric itself, or what it is "rounds to X of" or "mean of the last N of"."""
    found = rounds_to(metric) or mean_of_last(metric)
    return found[1] if found else metric


def trailing_means(values: Sequence[tuple[int, float]], rounds: int) -> list[tuple[int, float]]:
    """Return (round, mean of what was measured in so many rounds up to it) of a metric's values by round."""
    within = [(r, [v for t, v in values if r - rounds < t <= r]) for r, _ in values]
    return [(r, sum(found) / len(found)) for r, found in within]


def first_rounds(values: Sequence[tuple[int, float]], target: float, lower: bool = False) -> list[tuple[int, float]]:
    """Return (round, rounds until a metric was first measured at `target` or better) of its values by round; a round that has not
    seen it counts itself. lower: whether the metric is better when it is lower."""
    reached = [r for r, v in values if (v <= target if lower else v >= target)]
    return [(r, float(min([*reached[:1], r]))) for r, _ in values]


LOGGED_LOSSES = ("distill/fidelity", "distill/student", "generator/fidelity")


def lower_is_better(metric: str | None) -> bool:
    """Return whether a metric is better when it is lower: measures that say so (loss/..., rmse/...), time/..., bytes/..., ray/...,
    aggregate/..., lora/gap..., NAME/forgetting and losses that methods log; also "rounds to X of ...". In scope `backdoor` it is the
    other way round."""
    name = str(metric or "")
    family = name.partition("/")[0]
    if name.partition("/")[2].removesuffix("_ex") == "backdoor":  # there a good score is the attacker's
        return not lower_is_better(f"{family}/global")
    if name.partition("/")[2] == FORGETTING:
        return True
    if of := mean_of_last(name):
        return lower_is_better(of[1])
    return (
        rounds_to(name) is not None
        or name.startswith("lora/gap")
        or name in LOGGED_LOSSES
        or name.endswith("/loss")
        or family in ("time", "bytes", "ray", "aggregate")
        or (family in MEASURES and MEASURES[family].better == "lower")
    )


def outcome(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {metric: {"final", "best", "best_round"}} of rows in order; of equal best values the first. final: see `final_value`."""
    out: dict[str, dict[str, Any]] = {}
    names = dict.fromkeys(name for row in rows for name in row if name != "round")
    for name in names:
        measured = [(row["round"], row[name]) for row in rows if row.get(name) is not None]
        if not measured:
            continue
        sign = 1 if lower_is_better(name) else -1
        ranked = [(sign * v, r, v) for r, v in measured if not math.isnan(v)]
        best = min(ranked) if ranked else (0, None, None)
        out[name] = {"final": final_value(rows, name), "best": best[2], "best_round": best[1]}
    return out


def final_value(rows: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """Return the last measured value of rows in order, None without one.

    Of scope `global` None too where the last evaluation could not score it: an earlier round's is not the final one's.
    """
    measured = [row for row in rows if row.get(metric) is not None]
    if not measured:
        return None
    evaluated = [row["round"] for row in rows if row.get("time/evaluate") is not None]
    if metric.endswith("/global") and evaluated and evaluated[-1] > measured[-1]["round"]:
        return None
    return measured[-1][metric]
