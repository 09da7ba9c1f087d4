"""Pictures of clients: how a metric is distributed over them, and which cluster each is in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rayfed.metrics import lower_is_better
from rayfed.report.curves import MAX_PANELS
from rayfed.report.picture import COLOURS, DASHES, INK, Picture, Style, line_style, line_width, shorten
from rayfed.report.statistics import worst_decile
from rayfed.report.subject import Membership, RunRecord, Subject

if TYPE_CHECKING:
    import numpy as np

MAX_DOTS = 600  # clients drawn one by one
MAX_CLUSTERS = 12  # in the key


# -- distribution ------------------------------------------------------------------------------------------------------


def client_metric(subject: Subject) -> str | None:
    """Return the per-client column to show: accuracy, else rmse or loss; None if there is none of them."""
    columns = {k for run in subject.runs for row in run.clients[:1] for k in row}
    return next((m for m in ("accuracy", "rmse", "loss") if m in columns), None)


def client_values(run: RunRecord, metric: str, unseen: bool = False) -> list[float]:
    """Return the finite values of the clients that take part, or of the unseen ones."""
    rows = [row for row in run.clients if bool(row.get("unseen")) == unseen]
    return [v for row in rows if (v := _finite(row.get(metric))) is not None]


def _client_sets(subject: Subject, metric: str) -> dict[str, list[float]]:
    """Return the distributions to draw: for a run all clients, each planted group and the unseen ones; else each arm's, over
    all seeds."""
    if subject.kind != "run":
        found = {arm: [v for run in runs for v in client_values(run, metric)] for arm, runs in subject.arms.items()}
        return {arm: values for arm, values in found.items() if values}
    (run,) = subject.runs
    groups: dict[int, list[float]] = {}
    for row in run.clients:
        value, group = _finite(row.get(metric)), row.get("group")
        if value is not None and not row.get("unseen") and group is not None and group >= 0:
            groups.setdefault(group, []).append(value)
    sets = {"all clients": client_values(run, metric)}
    if 1 < len(groups) <= 6:
        sets |= {f"group {g}": groups[g] for g in sorted(groups)}
    sets["unseen"] = client_values(run, metric, unseen=True)
    return {name: values for name, values in sets.items() if values}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def distribution(subject: Subject) -> Picture | None:
    """Draw the distribution of a metric over the clients at the newest evaluation, with the worst decile marked.

    In a second panel, for a run the clients by size, else the worst decile of every seed.
    """
    metric = client_metric(subject)
    sets = _client_sets(subject, metric) if metric else {}
    if metric is None or not sets:
        return None
    styles: dict[str, Style]
    if subject.kind == "run":
        (run,) = subject.runs
        styles = {name: {"color": COLOURS[i - 1]} for i, name in enumerate(sets)}
        fixed: dict[str, Style] = {
            "all clients": {"color": INK},
            "unseen": {"color": COLOURS[7], "linestyle": DASHES[1]},
        }
        styles |= {name: style for name, style in fixed.items() if name in sets}
        sized = any(row.get("examples") for row in run.clients)
        second = [partial(_paint_sizes, run=run, metric=metric, styles=styles)] if sized else []
        marked = [name for name in sets if name == "all clients"]
    else:
        styles = {arm: line_style(i) for i, arm in enumerate(subject.arms)}
        second = [partial(_paint_worst, subject=subject, metric=metric)]
        marked = list(sets)
    first = partial(_paint_distribution, sets=sets, metric=metric, styles=styles, marked=marked)
    note = f"Grey: the worst tenth of the clients; diamond: their mean {metric}."
    return Picture("clients", f"{metric} of the clients at the last evaluation", [first, *second], styles, note)


def _paint_distribution(
    axis: Any, sets: Mapping[str, Sequence[float]], metric: str, styles: Mapping[str, Style], marked: Sequence[str]
) -> None:
    """Draw cumulative distributions; `marked`: the sets whose worst decile gets a diamond."""
    lower = lower_is_better(metric)
    axis.axhspan(*((0.9, 1.0) if lower else (0.0, 0.1)), color="#808080", alpha=0.14, linewidth=0)
    for i, (name, values) in enumerate(sets.items()):
        xs = sorted(values)
        n = len(xs)
        kept = sorted({round(k * (n - 1) / MAX_DOTS) for k in range(MAX_DOTS + 1)})  # as fine as the picture is
        points = [(xs[0], 0.0), *((xs[k], (k + 1) / n) for k in kept)]
        width = line_width(i, len(sets))
        axis.plot(*zip(*points, strict=True), drawstyle="steps-post", linewidth=width, **styles[name])
        if name in marked:
            place = [worst_decile(values, lower)], [0.95 if lower else 0.05]
            axis.plot(*place, "D", color=styles[name]["color"], markersize=6, clip_on=False)
    axis.set_ylim(0, 1)
    axis.set_ylabel("share of clients at or below")
    axis.set_xlabel(f"{metric} on the client's own test split")
    axis.set_title("distribution")


def _paint_sizes(axis: Any, run: RunRecord, metric: str, styles: Mapping[str, Style]) -> None:
    """Draw a dot per client: its number of examples and its metric."""
    dots: dict[str, list[tuple[float, float]]] = {}
    for row in run.clients[:: max(1, math.ceil(len(run.clients) / MAX_DOTS))]:
        value, n = _finite(row.get(metric)), row.get("examples")
        name = "unseen" if row.get("unseen") else f"group {row.get('group')}"
        if value is not None and n:
            dots.setdefault(name if name in styles else "all clients", []).append((n, value))
    for name, points in dots.items():
        axis.scatter(*zip(*points, strict=True), s=16, color=styles[name]["color"], alpha=0.7, linewidths=0)
    sizes = [n for points in dots.values() for n, _ in points]
    if sizes and max(sizes) > 30 * min(sizes):
        axis.set_xscale("log")
    axis.set_xlabel("training examples of the client")
    axis.set_ylabel(metric)
    axis.set_title("by number of examples")


def _paint_worst(axis: Any, subject: Subject, metric: str) -> None:
    """Draw a dot per seed and a diamond for their mean, a line per arm."""
    lower = lower_is_better(metric)
    for i, runs in enumerate(subject.arms.values()):
        found = [worst_decile(values, lower) for run in runs if (values := client_values(run, metric))]
        colour = line_style(i)["color"]
        if found:
            axis.scatter(found, [i] * len(found), s=26, alpha=0.6, linewidths=0, color=colour)
            axis.plot([fmean(found)], [i], "D", color=colour, markersize=7)
    axis.set_yticks(range(len(subject.arms)), [shorten(arm) for arm in subject.arms])
    axis.set_ylim(len(subject.arms) - 0.5, -0.5)
    axis.set_xlabel(f"mean {metric} of the worst tenth")
    axis.set_title("worst decile, each seed")


# -- cluster membership ------------------------------------------------------------------------------------------------


def paint_cells(axis: Any, colours: np.ndarray) -> None:
    """Draw (rows, columns, 4) colours as cells."""
    axis.imshow(colours, aspect="auto", interpolation="none", origin="upper")
    axis.grid(False)


def blocks(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (label, first, one past the last) of each stretch of equal labels."""
    import numpy as np

    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(int(labels[a]), a, b) for a, b in pairwise(edges) if b > a]


def membership(subject: Subject) -> Picture | None:
    """Draw each client's cluster over the evaluated rounds: of a run, or of each arm's first seed."""
    import numpy as np
    from matplotlib.colors import to_rgba

    first = {arm: runs[0] for arm, runs in subject.arms.items() if runs}
    found = {arm: (run.seed, m) for arm, run in first.items() if (m := run.membership) is not None}
    left_out = len(found) - MAX_PANELS
    shown = dict(list(found.items())[:MAX_PANELS])
    if not shown:
        return None
    ids = sorted({int(k) for _, m in shown.values() for k in np.unique(m.cluster) if k >= 0})
    palette = np.array([to_rgba(COLOURS[k % len(COLOURS)]) for k in range(max(ids) + 1)] + [(0, 0, 0, 0)])
    panels = []
    for arm, (seed, m) in shown.items():
        title = arm if len(subject.arms[arm]) == 1 else f"{arm}, seed {seed}"
        panels.append(partial(_paint_membership, m=m, palette=palette, title="" if subject.kind == "run" else title))
    key = {f"cluster {k}": {"color": COLOURS[k % len(COLOURS)], "block": True} for k in ids[:MAX_CLUSTERS]}
    note = _membership_note([m for _, m in shown.values()], left_out, ids)
    return Picture("membership", "Who is in which cluster", panels, key, note, wide=len(panels) == 1)


def _membership_note(shown: Sequence[Membership], left_out: int, ids: Sequence[int]) -> str:
    planted = any((m.group >= 0).any() for m in shown)
    note = f"A row is a client{', by planted group' if planted else ''}; no colour: not in a cluster or not scored."
    if left_out > 0:
        note += f" {left_out} more arms have clusters."
    if any(m.thinned for m in shown):
        note += " Some evaluated rounds are left out."
    if len(ids) > MAX_CLUSTERS:
        note += f" Clusters from {ids[MAX_CLUSTERS]} on use the same colours again."
    return note


def _paint_membership(axis: Any, m: Membership, palette: np.ndarray, title: str) -> None:
    paint_cells(axis, palette[m.cluster])  # -1 takes the last colour, which is none
    groups = [block for block in blocks(m.group) if block[0] >= 0]
    if groups:
        axis.set_yticks([(a + b - 1) / 2 for _, a, b in groups], [f"group {g}" for g, _, _ in groups])
        axis.tick_params(axis="y", length=0)
        for _, a, _ in groups[1:]:
            axis.axhline(a - 0.5, color=INK, linewidth=1.2)
    else:
        axis.set_ylabel("clients")
    step = max(1, math.ceil(len(m.rounds) / 8))
    axis.set_xticks(range(0, len(m.rounds), step), [str(r) for r in m.rounds[::step]])
    axis.set_xlabel("evaluated round")
    if title:
        axis.set_title(title)
