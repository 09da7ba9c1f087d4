"""Metrics of all rows at once, of one client or of several together: AUROC, macro-F1, RMSE ... from scikit-learn, or a user's own.

A mean over rows can be added up client by client; these cannot, so the scores of each row come to the server and the metric is
computed there, once for each client and once for all rows of a scope: whatever way clients were grouped in, the number is the same.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.config.own_errors import contained, describe
from rayfed.config.user_function import load_function
from rayfed.errors import ConfigError, FailsAgain, nearest
from rayfed.metrics import MEASURES, Measure, declare

if TYPE_CHECKING:
    from numpy import ndarray

Rows = Mapping[str, Any]  # name -> an array (n, ...)

PREDICTION, KNOWN = "prediction", "mask"  # the row score that the ready metrics read, and the column of known labels
BINS = 15  # of the expected calibration error (Guo et al. 2017)


class SetMetric(NamedTuple):
    """A metric of a set of rows, or a family of them: what it measures, and (rows, batch) -> value by name; NaN where undefined.

    rows: scores of each row as `Task.score` gives them, (n, ...) float64; batch: the rows' own columns, y among them.
    """

    measures: tuple[Measure, ...]
    compute: Callable[[Rows, Rows], Mapping[str, float]]


# -- the ready ones: (truth, predictions, known) of each class or label -------------------------------------------------

Pair = tuple["ndarray", "ndarray"]


def _pairs(form: str, rows: Rows, batch: Rows) -> Iterator[Pair]:
    """Yield (truth 0 or 1, probability) over the rows in which it is known, of each label, or of each class against the rest; of two
    classes of the second alone."""
    p, y = np.asarray(rows[PREDICTION]), np.asarray(batch["y"])
    if form == "labels":
        known = np.asarray(batch[KNOWN]) > 0 if KNOWN in batch else np.ones(y.shape, bool)
        yield from ((y[known[:, k], k] > 0, p[known[:, k], k]) for k in range(y.shape[1]))
    else:
        yield from ((y == k, p[:, k]) for k in ([1] if p.shape[1] == 2 else range(p.shape[1])))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _auroc(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import roc_auc_score

    return _mean([roc_auc_score(t, p) for t, p in _pairs(form, rows, batch) if 0 < t.sum() < len(t)])


def _ap(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import average_precision_score

    return _mean([average_precision_score(t, p) for t, p in _pairs(form, rows, batch) if t.any()])


def _f1(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import f1_score

    if form == "labels":
        found = [f1_score(t, p >= 0.5, zero_division=0.0) for t, p in _pairs(form, rows, batch) if len(t)]
        return _mean(found)
    y, p = np.asarray(batch["y"]), np.asarray(rows[PREDICTION])
    return float(f1_score(y, p.argmax(1), average="macro", zero_division=0.0))


def _balanced_accuracy(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(batch["y"], np.asarray(rows[PREDICTION]).argmax(1)))


def _ece(form: str, rows: Rows, batch: Rows) -> float:
    """Guo et al. 2017 (1706.04599), equation 3: sum over bins of |accuracy - confidence| times the bin's share of the rows."""
    p = np.asarray(rows[PREDICTION])
    sure, right = p.max(1), p.argmax(1) == np.asarray(batch["y"])
    at = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(at, right, BINS) - np.bincount(at, sure, BINS)
    return float(np.abs(gaps).sum() / len(p))


def _brier(form: str, rows: Rows, batch: Rows) -> float:
    """Brier 1950: of classes the mean over rows of sum_c (p_c - 1[y = c])^2; of labels the mean over known labels of (p - y)^2."""
    p, y = np.asarray(rows[PREDICTION]), np.asarray(batch["y"])
    if form == "labels":
        return _mean(np.concatenate([(q - t) ** 2 for t, q in _pairs(form, rows, batch)]).tolist())
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(1).mean())


def _rmse(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(batch["y"], rows[PREDICTION]))


def _r2(form: str, rows: Rows, batch: Rows) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(batch["y"], rows[PREDICTION])) if len(batch["y"]) > 1 else math.nan


# name -> (of which forms of predictions it is had, how)
READY: dict[str, tuple[tuple[str, ...], Callable[[str, Rows, Rows], float]]] = {
    "auroc": (("classes", "labels"), _auroc),
    "ap": (("classes", "labels"), _ap),
    "f1": (("classes", "labels"), _f1),
    "balanced_accuracy": (("classes",), _balanced_accuracy),
    "ece": (("classes",), _ece),
    "brier": (("classes", "labels"), _brier),
    "rmse": (("numbers",), _rmse),
    "r2": (("numbers",), _r2),
}
PER_CLASS, CONFUSION = "per_class", "confusion"  # families: a metric of each class, of each pair of classes
MOST_PAIRS = 20  # classes of which pairs are counted
BASE_TO_NEW = "base_to_new"


def _word(label: str) -> str:
    """Return a class's name as a part of a metric's."""
    return re.sub(r"[^\w.+-]+", "_", label)


def _per_class(labels: Sequence[str]) -> SetMetric:
    """Return the recall of each class, or of each label: the share of its rows that are predicted as it."""
    measures = tuple(
        Measure(f"recall-{_word(n)}", "higher", "fraction", f"share of the rows of {n} that are predicted as it", "set")
        for n in labels
    )

    def compute(rows: Rows, batch: Rows) -> Mapping[str, float]:
        p, y = np.asarray(rows[PREDICTION]), np.asarray(batch["y"])
        if y.ndim == 1:
            hits = [(p.argmax(1) == k)[y == k] for k in range(len(labels))]
        else:
            hits = [(q >= 0.5)[t] for t, q in _pairs("labels", rows, batch)]
        return {m.name: _mean(h) for m, h in zip(measures, hits, strict=True)}

    return SetMetric(measures, compute)


def _confusion(labels: Sequence[str]) -> SetMetric:
    """Return how often a row of one class is predicted as another one: the confusion matrix without its diagonal, in shares of the
    class's rows."""
    names = [_word(n) for n in labels]
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    measures = tuple(
        Measure(f"confusion-{names[i]}-{names[j]}", "lower", "fraction", f"share of {labels[i]} predicted as {labels[j]}", "set")
        for i, j in pairs
    )  # fmt: skip

    def compute(rows: Rows, batch: Rows) -> Mapping[str, float]:
        from sklearn.metrics import confusion_matrix

        guess = np.asarray(rows[PREDICTION]).argmax(1)
        table = confusion_matrix(batch["y"], guess, labels=np.arange(len(names)))
        with np.errstate(invalid="ignore"):
            shares = table / table.sum(1, keepdims=True)
        return {m.name: float(shares[p]) for m, p in zip(measures, pairs, strict=True)}

    return SetMetric(measures, compute)


def _base_to_new(new: Sequence[int]) -> SetMetric:
    """Return the accuracy on rows of base classes and of new ones, each among its own classes alone, and the harmonic mean of both (Zhou et
    al. 2022, CoCoOp, 2203.05557); new: the numbers of those that no client has."""
    measures = (
        Measure("base_accuracy", "higher", "fraction", "accuracy on rows of base classes, among these alone", "set"),
        Measure("new_accuracy", "higher", "fraction", "accuracy on rows of new classes, among these alone", "set"),
        Measure("harmonic_mean", "higher", "fraction", "harmonic mean of base_accuracy and new_accuracy", "set"),
    )

    def compute(rows: Rows, batch: Rows) -> Mapping[str, float]:
        p, y = np.asarray(rows[PREDICTION]), np.asarray(batch["y"])
        other = np.isin(np.arange(p.shape[1]), new)

        def right(among: np.ndarray) -> float:
            mine, classes = among[y], np.flatnonzero(among)
            return _mean(classes[p[mine][:, classes].argmax(1)] == y[mine])

        base, novel = right(~other), right(other)
        both = 2 * base * novel / (base + novel) if base + novel > 0 else 0.0 * (base + novel)
        return {"base_accuracy": base, "new_accuracy": novel, "harmonic_mean": both}

    return SetMetric(measures, compute)


def names() -> list[tuple[str, str]]:
    """Return (name, one sentence) of every metric that `evaluate.metrics` takes, for `rayfed tasks`."""
    return [(n, MEASURES[n].text) for n in READY] + [
        (PER_CLASS, "recall of each class or label"),
        (BASE_TO_NEW, "accuracy on base and on new classes (federation.new_classes), and the harmonic mean of both"),
        (CONFUSION, f"share of each class that is predicted as each other one; of at most {MOST_PAIRS} classes"),
        ("path/to/file.py:function", "your own (rows, batch) -> number"),
    ]


# -- those that a run asks for -----------------------------------------------------------------------------------------


def given(form: str, labels: Sequence[str]) -> list[str]:
    """Return the names of the ready metrics of predictions of a form (classes | labels | numbers) of these classes or labels."""
    found = [n for n, (forms, _) in READY.items() if form in forms]
    found += [PER_CLASS] if form in ("classes", "labels") else []
    return found + ([CONFUSION] if form == "classes" and len(labels) <= MOST_PAIRS else [])


def make(name: str, form: str, labels: Sequence[str], new: Sequence[int] = ()) -> SetMetric:
    """Return a metric by its name in `evaluate.metrics`, of predictions of a form; labels: names of the classes or labels; new: the
    numbers of the classes that no client has.

    ConfigError where there is none of that name, or not of such predictions.
    """
    if is_own(name):
        return own(name)
    if name == BASE_TO_NEW and form == "classes" and len(new):
        return _base_to_new(new)
    if name == BASE_TO_NEW and form == "classes":
        raise ConfigError(
            f"evaluate.metrics: {name} found, federation.new_classes: 0 found; allowed: at least one class"
        )
    if name not in given(form, labels):
        known = given(form, labels)
        raise ConfigError(
            f"evaluate.metrics: {name!r} found{nearest(name, known)}, which this task cannot give; allowed: "
            f"{', '.join([*known, 'path/to/file.py:function'])}"
        )
    if name in (PER_CLASS, CONFUSION):
        return (_per_class if name == PER_CLASS else _confusion)(labels)
    return SetMetric((MEASURES[name],), lambda rows, batch: {name: READY[name][1](form, rows, batch)})


def is_own(name: str) -> bool:
    """Return whether a name is a user's own function's."""
    return ".py:" in name


def own(name: str) -> SetMetric:
    """Return a user's own function (rows, batch) -> number as a metric, named as the function.

    Its attributes `better` ("higher" as by default, or "lower") and `unit` say what else is to be known, the first line of its
    docstring what it is.
    """
    function = load_function(name, "evaluate.metrics")
    called = name.rpartition(":")[2]
    better, unit = getattr(function, "better", "higher"), str(getattr(function, "unit", "-"))
    if better not in ("higher", "lower"):
        raise ConfigError(f"evaluate.metrics: {name}.better: {better!r} found, allowed: higher, lower")
    about = (inspect.getdoc(function) or called).splitlines()[0].rstrip(".")
    measure = Measure(called, better, unit, about, "set")
    declare([measure])

    compute = contained_in(f"evaluate.metrics: {name}", lambda rows, batch: {called: float(function(rows, batch))})
    return SetMetric((measure,), compute)


def contained_in(
    where: str, compute: Callable[[Rows, Rows], Mapping[str, float]]
) -> Callable[[Rows, Rows], Mapping[str, float]]:
    """Return the same function, which ends the run with a sentence where it raises. where: what the sentence begins with."""

    def call(rows: Rows, batch: Rows) -> Mapping[str, float]:
        try:
            with contained():
                return compute(rows, batch)
        except Exception as e:
            raise FailsAgain(f"{where} raised {describe(e)}") from e

    return call


def computed(metrics: Sequence[SetMetric], rows: Rows, batch: Rows) -> dict[str, float | None]:
    """Return each metric's value of these rows, None where it is undefined there (AUROC of rows of one class)."""
    out: dict[str, float | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of what is undefined: None says it
        for metric in metrics:
            found = metric.compute(rows, batch)
            for m in metric.measures:
                value = float(found.get(m.name, math.nan))
                out[m.name] = value if math.isfinite(value) else None
    return out
