"""Pictures: each as SVG for the page, whose text and axes take the page's colour, and as PNG for elsewhere."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rayfed.metrics import meaning
from rayfed.report.data import Subject

# Readable on white and on black; the first five also for readers who confuse red and green.
COLOURS = ("#2f7fd0", "#e08a1e", "#1fa187", "#c9528f", "#8b6fd6", "#a0763b", "#d1493f", "#7a8794")
LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
INK = "#010203"  # stands for the page's text colour in the SVG
SCOPE_COLOUR = {s: COLOURS[i] for i, s in enumerate(("global", "personal", "cluster", "local", "unseen"))}
MOST_DOTS = 400
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayfed",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    **{
        k: INK
        for k in ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    },
}
_ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings are global; reports may be written by threads


class Picture(NamedTuple):
    name: str  # file name under plots/
    title: str
    svg: str
    png: bytes


def style(i: int) -> dict[str, Any]:
    """Colour and dashes of arm `i`."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[(i // len(COLOURS)) % len(LINES)]}


def _draw(name: str, title: str, panels: int, paint: Callable[[list[Any]], None], height: float = 2.9) -> Picture:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(3, panels)
    lines = math.ceil(panels / columns)
    with _ONE_AT_A_TIME, matplotlib.rc_context(_STYLE):
        width = 1.2 + 3.5 * (2 if panels == 1 else columns)
        figure = Figure(figsize=(width, height * lines), layout=ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09))
        axes = [figure.add_subplot(lines, columns, i + 1) for i in range(panels)]
        paint(axes)
        for a in axes:
            a.grid(True, axis="y", color="#808080", alpha=0.25, linewidth=0.7)
            a.set_axisbelow(True)
        drawn, raster = io.BytesIO(), io.BytesIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(raster, format="png", dpi=150, facecolor="white")
    return Picture(name, title, _inline(drawn.getvalue().decode(), name, title), raster.getvalue())


def _inline(svg: str, name: str, title: str) -> str:
    """For the inside of an HTML page: no XML header, ids of its own, the page's colour, a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _label(metric: str) -> str:
    about = meaning(metric)
    name = metric.partition("/")[0]
    return f"{name} ({about.unit})" if about and about.unit not in ("fraction", "-") else name


def _line(axis: Any, series: Sequence[Sequence[tuple[int, float]]], label: str, **look: Any) -> None:
    """The mean over seeds where at least one was measured, with a band from the least to the greatest."""
    at: dict[int, list[float]] = {}
    for one in series:
        for r, v in one:
            if math.isfinite(v):
                at.setdefault(r, []).append(v)
    xs = sorted(at)
    if not xs:
        return
    few = {"marker": "o", "markersize": 3.5} if len(xs) <= 30 else {}
    axis.plot(xs, [fmean(at[x]) for x in xs], label=label, **look, **few)
    if any(len(v) > 1 for v in at.values()):
        low, high = [min(at[x]) for x in xs], [max(at[x]) for x in xs]
        axis.fill_between(xs, low, high, color=look["color"], alpha=0.16, linewidth=0)


def _legend(axis: Any) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend()


def _rounds(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    axis.set_xlabel("round")


def curves(subject: Subject) -> list[Picture]:
    """Per NAME: for a run the scopes as lines, for a study a panel per scope with the arms as lines."""
    out = []
    for name, scopes in subject.scoped().items():

        def paint(axes: list[Any], name: str = name, scopes: list[str] = scopes) -> None:
            if subject.study is None:
                for where in scopes:
                    _line(axes[0], [r.series(f"{name}/{where}") for r in subject.all], where, color=SCOPE_COLOUR[where])
                _legend(axes[0])
            else:
                for axis, where in zip(axes, scopes, strict=True):
                    for i, (arm, runs) in enumerate(subject.arms.items()):
                        _line(axis, [r.series(f"{name}/{where}") for r in runs], arm, **style(i))
                    axis.set_title(where)
                _legend(axes[0])
            for axis in axes:
                axis.set_ylabel(_label(f"{name}/x"))
                _rounds(axis)

        panels = 1 if subject.study is None else len(scopes)
        title = f"{name} by round"
        out.append(_draw(f"{_file(name)}", title, panels, paint, 3.4 if panels == 1 else 2.9))
    return out


def clusters(subject: Subject) -> Picture | None:
    """Found clusters by round, if the method has any."""
    return _panels(subject, "clusters", "Clusters by round", {
        "clusters/ari": ("agreement with the planted groups", "adjusted Rand index", 1.0),
        "clusters/count": ("clusters in use", "clusters", 1.0),
    })  # fmt: skip


def cost(subject: Subject) -> Picture | None:
    """Bytes and time by round."""
    return _panels(subject, "cost", "Cost by round", {
        "bytes/up": ("sent by clients", "MB per round", 1e-6),
        "bytes/down": ("sent to clients", "MB per round", 1e-6),
        "time/round": ("time", "seconds per round", 1.0),
    })  # fmt: skip


def _panels(subject: Subject, name: str, title: str, wanted: dict[str, tuple[str, str, float]]) -> Picture | None:
    shown = {m: about for m, about in wanted.items() if m in subject.metrics}
    if not shown:
        return None

    def paint(axes: list[Any]) -> None:
        for axis, (metric, (heading, unit, scale)) in zip(axes, shown.items(), strict=True):
            for i, (arm, runs) in enumerate(subject.arms.items()):
                _line(axis, [[(r, v * scale) for r, v in run.series(metric)] for run in runs], arm, **style(i))
            axis.set_title(heading)
            axis.set_ylabel(unit)
            low, high = axis.dataLim.intervaly
            if math.isfinite(low) and math.isfinite(high):
                axis.set_ylim(min(0.0, 1.08 * low), 1.08 * high if high > 0 else 1.0)
            _rounds(axis)
        if len(subject.arms) > 1:
            _legend(axes[0])

    return _draw(name, title, len(shown), paint)


def per_client(subject: Subject) -> Picture | None:
    """Accuracy (or what there is) of each client at the newest evaluation: per arm, or per planted group of a run."""
    sets: dict[str, list[float]] = {}
    found = client_metric(subject)
    if found is None:
        return None
    if subject.study is None:
        for row in subject.all[0].clients:
            group = row.get("group")
            label = "unseen" if row.get("unseen") else "clients" if group is None or group < 0 else f"group {group}"
            sets.setdefault(label, []).append(row.get(found))  # type: ignore[arg-type]
        sets = dict(sorted(sets.items(), key=lambda kv: (kv[0] == "unseen", kv[0])))
    else:
        for arm, runs in subject.arms.items():
            sets[arm] = [row.get(found) for run in runs for row in run.clients if not row.get("unseen")]  # type: ignore[misc]
    sets = {k: [v for v in vs if v is not None and math.isfinite(v)] for k, vs in sets.items()}
    sets = {k: v for k, v in sets.items() if v}
    if not sets:
        return None

    def paint(axes: list[Any]) -> None:
        import matplotlib

        new = tuple(int(x) for x in matplotlib.__version__.split(".")[:2]) >= (3, 10)
        lying = {"orientation": "horizontal"} if new else {"vert": False}
        (axis,) = axes
        for i, values in enumerate(sets.values()):
            look = style(i)
            axis.boxplot(
                [values], positions=[i], **lying, widths=0.5, showfliers=False, patch_artist=True,
                boxprops={"facecolor": "none", "edgecolor": look["color"], "linewidth": 1.4},
                medianprops={"color": look["color"], "linewidth": 2.4},
                whiskerprops={"color": look["color"]}, capprops={"color": look["color"]},
            )  # fmt: skip
            shown = sorted(values)[:: max(1, math.ceil(len(values) / MOST_DOTS))]
            spread = [i + 0.32 * (((k * 0.618034) % 1.0) - 0.5) for k in range(len(shown))]  # even, the same every time
            axis.scatter(shown, spread, s=15, color=look["color"], alpha=0.5, linewidths=0)
        axis.set_yticks(range(len(sets)), list(sets))
        axis.set_ylim(len(sets) - 0.4, -0.6)
        axis.set_xlabel(f"{found}, each client on its own test split")

    return _draw("clients", f"{found} of each client", 1, paint, 1.3 + 0.55 * len(sets))


def client_metric(subject: Subject) -> str | None:
    """The per-client column to show."""
    columns = {k for run in subject.all for row in run.clients[:1] for k in row}
    return next((m for m in ("accuracy", "loss", "rmse") if m in columns), None)


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)
