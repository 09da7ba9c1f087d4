"""Pictures of lines: metrics by round, and by what was spent for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from rayfed.metrics import FAMILIES, meaning
from rayfed.report.picture import SCOPE_COLOURS, Picture, Style, file_name, line_style, line_width
from rayfed.report.subject import RunRecord, Subject

MAX_PANELS = 6  # of a picture whose number of panels depends on the run

Curve = Sequence[tuple[int, float, float]]  # round, x, y


class Panel(NamedTuple):
    """Lines in one axis: each a style and a curve per seed."""

    title: str
    x: str
    y: str
    lines: Sequence[tuple[Style, Sequence[Curve]]]
    from_zero: bool = False

    def paint(self, axis: Any) -> None:
        """Draw the lines and label a matplotlib axis."""
        from matplotlib.ticker import MaxNLocator

        for i, (style, series) in enumerate(self.lines):
            _paint_line(axis, series, {**style, "linewidth": line_width(i, len(self.lines))})
        axis.set_title(self.title)
        axis.set_xlabel(self.x)
        axis.set_ylabel(self.y)
        if self.from_zero:
            low, high = axis.dataLim.intervaly
            if math.isfinite(low) and math.isfinite(high):
                axis.set_ylim(min(0.0, 1.08 * low), 1.08 * high if high > 0 else 1.0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=self.x == "round", nbins=7))
        if self.y == "clusters":
            axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _paint_line(axis: Any, series: Sequence[Curve], style: Style) -> None:
    """Draw the mean over the seeds that have a value, and a band from the least to the greatest seed."""
    by_round: dict[int, list[tuple[float, float]]] = {}
    for curve in series:
        for r, x, y in curve:
            if math.isfinite(x) and math.isfinite(y):
                by_round.setdefault(r, []).append((x, y))
    if not by_round:
        return
    rounds = sorted(by_round)
    xs = [fmean(x for x, _ in by_round[r]) for r in rounds]
    ys = [[y for _, y in by_round[r]] for r in rounds]
    markers = {"marker": "o", "markersize": 3.5} if len(xs) <= 30 else {}
    axis.plot(xs, [fmean(y) for y in ys], **style, **markers)
    if any(len(y) > 1 for y in ys):
        low, high = [min(y) for y in ys], [max(y) for y in ys]
        axis.fill_between(xs, low, high, color=style["color"], alpha=0.16, linewidth=0)


def _axis_label(metric: str, subject: Subject) -> str:
    about = meaning(metric, measures=subject.measures)
    name = metric.partition("/")[0] if about else metric
    return f"{name} ({about.unit})" if about and about.unit not in ("fraction", "-") else name


def by_round(run: RunRecord, metric: str, scale: float = 1.0) -> Curve:
    """Return a metric over rounds, times `scale`."""
    return [(r, r, scale * v) for r, v in run.series(metric)]


def _arm_lines(subject: Subject, curve: Callable[[RunRecord], Curve]) -> list[tuple[Style, list[Curve]]]:
    """Return each arm's style and its runs' curves."""
    return [(line_style(i), [curve(run) for run in runs]) for i, runs in enumerate(subject.arms.values())]


def arm_key(subject: Subject) -> dict[str, Style]:
    """Return arm -> its style; nothing where there is only one."""
    return {arm: line_style(i) for i, arm in enumerate(subject.arms)} if len(subject.arms) > 1 else {}


def band_note(subject: Subject) -> str:
    """Explain line and band, where runs of several seeds are drawn as one."""
    several = any(len(runs) > 1 for runs in subject.arms.values())
    return "Line: mean over seeds. Band: from the least to the greatest seed." if several else ""


def scope_curves(subject: Subject) -> list[Picture]:
    """Draw the metrics with a scope by round.

    For a run one picture, a panel per NAME with its scopes as lines; else a picture per NAME, a panel per scope with the
    arms as lines.
    """
    scopes = {name: found for name, found in subject.scopes().items() if not name.startswith(FAMILIES)}
    if subject.kind == "run":
        (run,) = subject.runs
        measured = {s for found in scopes.values() for s in found}
        key: dict[str, Style] = {s: {"color": c} for s, c in SCOPE_COLOURS.items() if s in measured}
        panels = []
        for name, found in scopes.items():
            lines = [(key[s], [by_round(run, f"{name}/{s}")]) for s in found]
            panels.append(Panel(name, "round", _axis_label(f"{name}/global", subject), lines))
        return [_picture("curves", f"{' and '.join(scopes)} by round", panels, key)] if panels else []
    pictures = []
    for name, found in scopes.items():
        label = _axis_label(f"{name}/global", subject)
        panels = []
        for scope in found:
            lines = _arm_lines(subject, partial(by_round, metric=f"{name}/{scope}"))
            panels.append(Panel(scope, "round", label, lines))
        key, note = arm_key(subject), band_note(subject)
        pictures.append(_picture(file_name(name), f"{name} by round", panels, key, note))
    return pictures


def other_metrics(subject: Subject) -> Picture | None:
    """Draw privacy spent and the method's own metrics by round."""
    drawn_elsewhere = ("clusters", *subject.scopes())
    shown = [m for m in subject.quality_metrics() if m.partition("/")[0] not in drawn_elsewhere][:MAX_PANELS]
    wanted = {m: (m, _axis_label(m, subject), 1.0) for m in shown}
    return _by_round(subject, "others", "Other metrics by round", wanted, from_zero=False)


def clusters(subject: Subject) -> Picture | None:
    """Draw found clusters by round, if the method has any."""
    return _by_round(subject, "clusters", "Clusters by round", {
        "clusters/ari": ("agreement with the planted groups", "adjusted Rand index", 1.0),
        "clusters/count": ("clusters in use", "clusters", 1.0),
    })  # fmt: skip


def cost(subject: Subject) -> Picture | None:
    """Draw bytes and time by round."""
    picture = _by_round(subject, "cost", "Cost by round", {
        "bytes/up": ("sent by clients", "MB per round", 1e-6),
        "bytes/down": ("sent to clients", "MB per round", 1e-6),
        "time/round": ("wall time, without evaluation", "seconds per round", 1.0),
        "time/simulated": ("virtual time since the start", "seconds", 1.0),
    })  # fmt: skip
    if picture is None or not _has_bytes(subject):
        return picture

    def total(run: RunRecord) -> Curve:
        return [(r, r, v * 1e-6) for r, v in run.cumulative("bytes/up", "bytes/down").items()]

    both = Panel("both directions, since the start", "round", "MB", _arm_lines(subject, total), from_zero=True)
    panels = [*picture.panels[:2], both.paint, *picture.panels[2:]]
    return Picture(picture.name, picture.title, panels, picture.key, picture.note)


def _has_bytes(subject: Subject) -> bool:
    return all(m in subject.metrics for m in ("bytes/up", "bytes/down"))


class _Expense(NamedTuple):
    """What is spent over rounds, for the x axis."""

    label: str
    metrics: tuple[str, ...]
    scale: float
    summed: bool = True  # over the rounds; a metric that is a sum already is not

    def curve(self, run: RunRecord, metric: str) -> Curve:
        """Return a metric against what was spent until then."""
        spent = run.cumulative(*self.metrics) if self.summed else dict(run.series(self.metrics[0]))
        return [(r, self.scale * spent[r], v) for r, v in run.series(metric) if r in spent]


UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def time_unit(seconds: float) -> tuple[float, str]:
    """Return (seconds of the unit, its name) in which so long a time is at least one."""
    return next((u for u in UNITS if seconds >= u[0]), UNITS[-1])


def by_expense(subject: Subject) -> Picture | None:
    """Draw the first NAME against the megabytes, the seconds and the privacy that were spent so far."""
    scopes = subject.scopes()
    name = next(iter(scopes), None)
    if name is None:
        return None
    shown = [s for s in ("global", "personal") if s in scopes[name]]
    expenses = []
    if _has_bytes(subject):
        expenses.append(_Expense("MB sent, both directions", ("bytes/up", "bytes/down"), 1e-6))
    if "time/round" in subject.metrics:
        expenses.append(_Expense("seconds in rounds", ("time/round",), 1.0))
    if "time/simulated" in subject.metrics:
        per, name_of_unit = time_unit(
            max(run.series("time/simulated")[-1][1] for run in subject.runs if run.series("time/simulated"))
        )
        expenses.append(_Expense(f"simulated {name_of_unit}", ("time/simulated",), 1 / per, summed=False))
    if "privacy/epsilon" in subject.metrics:
        expenses.append(_Expense("privacy, epsilon", ("privacy/epsilon",), 1.0, summed=False))
    if "privacy/epsilon_examples" in subject.metrics:
        expenses.append(_Expense("privacy of examples, epsilon", ("privacy/epsilon_examples",), 1.0, summed=False))
    if not shown or not expenses:
        return None
    panels, key = [], arm_key(subject)
    if subject.kind == "run":
        (run,) = subject.runs
        key = {s: {"color": SCOPE_COLOURS[s]} for s in shown}
        for expense in expenses:
            lines = [(key[s], [expense.curve(run, f"{name}/{s}")]) for s in shown]
            panels.append(Panel("", expense.label, name, lines))
    else:
        for expense in expenses:
            for scope in shown:
                arms = _arm_lines(subject, partial(expense.curve, metric=f"{name}/{scope}"))
                panels.append(Panel(f"{name}/{scope}", expense.label, name, arms))
    return _picture("worth", f"{name} by what was spent", panels, key, band_note(subject))


def backdoor(subject: Subject) -> Picture | None:
    """Draw the last accuracy against the attackers' last success, a dot per run; None where no trigger was scored."""
    x, y = "accuracy/backdoor", "accuracy/global"
    if x not in subject.metrics or y not in subject.metrics:
        return None

    def paint(axis: Any) -> None:
        for i, runs in enumerate(subject.arms.values()):
            dots = [(run.series(x)[-1][1], run.series(y)[-1][1]) for run in runs if run.series(x) and run.series(y)]
            if dots:
                axis.scatter(*zip(*dots, strict=True), s=36, color=line_style(i)["color"], alpha=0.8, linewidths=0)
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel("test rows with the trigger taken for the attackers' class")
        axis.set_ylabel(y)

    note = "A dot per run, at its last evaluation: upper left is what a defence wants."
    return Picture("backdoor", "Accuracy and the backdoor's success", [paint], arm_key(subject), note)


def _picture(name: str, title: str, panels: Sequence[Panel], key: Mapping[str, Style], note: str = "") -> Picture:
    return Picture(name, title, [p.paint for p in panels], key, note)


def _by_round(
    subject: Subject, name: str, title: str, wanted: Mapping[str, tuple[str, str, float]], from_zero: bool = True
) -> Picture | None:
    """Draw metric -> (heading, unit, scale), a panel each; None if none of them was measured."""
    panels = []
    for metric, (heading, unit, scale) in wanted.items():
        if metric in subject.metrics:
            lines = _arm_lines(subject, partial(by_round, metric=metric, scale=scale))
            panels.append(Panel(heading, "round", unit, lines, from_zero))
    return _picture(name, title, panels, arm_key(subject), band_note(subject)) if panels else None


def chosen(subject: Subject, metrics: Sequence[str]) -> Picture:
    """Draw these metrics by round, a panel each."""
    panels = [
        Panel(m, "round", _axis_label(m, subject), _arm_lines(subject, partial(by_round, metric=m))) for m in metrics
    ]
    return _picture("chosen", f"{', '.join(metrics)} by round", panels, arm_key(subject), band_note(subject))
