"""Pictures: each as SVG panels for the page, whose text and axes take the page's colour, and as PNG for elsewhere."""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.metrics import lower_is_better, meaning
from rayfed.report.data import Holdings, Run, Subject, holdings, worst_decile

if TYPE_CHECKING:
    import numpy as np

# Readable on white and on black; the first five also for readers who confuse red and green.
COLOURS = ("#2f7fd0", "#e08a1e", "#1fa187", "#c9528f", "#8b6fd6", "#a0763b", "#d1493f", "#7a8794")
LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
INK = "#010203"  # stands for the page's text colour in the SVG
PAPER = "#fefdfc"  # for that of what lies beneath a picture
SCOPE_COLOUR = {s: COLOURS[i] for i, s in enumerate(("global", "personal", "cluster", "local", "unseen"))}
DPI = 150  # of the PNGs
MOST_DOTS = 600  # clients drawn one by one
MOST_PANELS = 6  # of one picture, where their number depends on what was run
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayfed",
    "text.parse_math": False,
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

Look = dict[str, Any]
Curve = Sequence[tuple[int, float, float]]  # round, x, y


@dataclass(frozen=True)
class Picture:
    """One figure of the page; `key` is its legend, which the page and the PNG each draw in their own way."""

    name: str  # file name under plots/
    title: str
    panels: Sequence[Callable[[Any], None]]  # each paints one axis
    key: Mapping[str, Look]
    note: str = ""
    wide: bool = False  # one panel over the whole width
    narrow: bool = False  # one panel, to stand beside others

    @property
    def size(self) -> tuple[float, float]:
        """Inches of a panel."""
        if self.narrow:
            return 3.5, 2.7
        return (9.6, 3.4) if self.wide else (4.9, 3.2) if self.columns < 3 else (3.9, 2.9)

    @property
    def columns(self) -> int:
        """Panels beside each other."""
        n = len(self.panels)
        return 1 if self.wide else 2 if n in (2, 4) else min(3, n)

    @cached_property
    def _figures(self) -> list[Any]:
        """A figure per panel with everything in its place: the layout takes most of the time."""
        out = []
        with _drawing():
            for paint in self.panels:
                figure = _figure(*self.size)
                axis = figure.add_subplot()
                axis.grid(True, axis="y", color="#808080", alpha=0.25, linewidth=0.7)
                axis.set_axisbelow(True)
                paint(axis)
                figure.get_layout_engine().execute(figure)
                figure.set_layout_engine("none")
                out.append(figure)
        return out

    def svgs(self) -> list[str]:
        """A drawing per panel, so that the page can put them beside or below each other."""
        out = []
        for i, figure in enumerate(self._figures):
            drawn = io.BytesIO()
            with _drawing():
                figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            out.append(_inline(drawn.getvalue().decode(), f"{self.name}-{i}", self.title))
        return out

    def png(self) -> bytes:
        """All panels and the key on white."""
        import numpy as np
        from matplotlib.image import imsave

        wide = self.columns
        with _drawing():
            panels = [_pixels(figure) for figure in self._figures]
            panels += [np.full_like(panels[0], 255)] * (-len(panels) % wide)
            rows = [np.concatenate(panels[i : i + wide], 1) for i in range(0, len(panels), wide)]
            if self.key:
                each = min(len(self.key), max(2, int(wide * self.size[0] / 1.6)))
                width = rows[0].shape[1] / DPI + 0.01  # whole pixels, at least
                figure = _figure(width, 0.2 + 0.22 * math.ceil(len(self.key) / each))
                handles = [_handle(look) for look in self.key.values()]
                figure.legend(handles, list(self.key), loc="center", ncols=each)
                rows.append(_pixels(figure))
            drawn = io.BytesIO()
            imsave(drawn, np.concatenate([row[:, : rows[0].shape[1]] for row in rows]), format="png", dpi=DPI)
        return drawn.getvalue()


@contextmanager
def _drawing() -> Iterator[None]:
    """Alone with matplotlib's settings."""
    import matplotlib

    with _ONE_AT_A_TIME, matplotlib.rc_context(_STYLE):
        yield


def _figure(width: float, height: float) -> Any:
    """An empty one, in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07))


def _pixels(figure: Any) -> np.ndarray:
    """(height, width, 3) of 0..255."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _inline(svg: str, name: str, title: str) -> str:
    """For the inside of an HTML page: no XML header, ids of its own, the page's colour, a name for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--panel)")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def style(i: int) -> Look:
    """Colour and dashes of arm `i`."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[(i // len(COLOURS)) % len(LINES)]}


def _width(i: int, n: int) -> float:
    """Of line `i` of `n`: earlier ones are wider, so that they can be seen beneath later ones."""
    return 1.6 + min(0.7, 1.8 / max(1, n - 1)) * (n - 1 - i)


def _short(name: str) -> str:
    """What fits beside an axis."""
    return name if len(name) <= 18 else f"{name[:17]}…"


def _handle(look: Look) -> Any:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if look.get("block"):
        return Patch(facecolor=look["color"], alpha=look.get("alpha"))
    return Line2D([], [], color=look["color"], linestyle=look.get("linestyle", "-"))


def _file(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


# -- lines -------------------------------------------------------------------------------------------------------------


def _line(axis: Any, series: Sequence[Curve], look: Look) -> None:
    """The mean over seeds where at least one was measured, with a band from the least to the greatest."""
    at: dict[int, list[tuple[float, float]]] = {}
    for one in series:
        for r, x, y in one:
            if math.isfinite(x) and math.isfinite(y):
                at.setdefault(r, []).append((x, y))
    if not at:
        return
    rounds = sorted(at)
    xs = [fmean(x for x, _ in at[r]) for r in rounds]
    ys = [[y for _, y in at[r]] for r in rounds]
    few = {"marker": "o", "markersize": 3.5} if len(xs) <= 30 else {}
    axis.plot(xs, [fmean(y) for y in ys], **look, **few)
    if any(len(y) > 1 for y in ys):
        axis.fill_between(xs, [min(y) for y in ys], [max(y) for y in ys], color=look["color"], alpha=0.16, linewidth=0)


class Panel(NamedTuple):
    """Lines in one axis: each a look and a curve per seed."""

    title: str
    x: str
    y: str
    lines: Sequence[tuple[Look, Sequence[Curve]]]
    from_zero: bool = False

    def paint(self, axis: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        for i, (look, series) in enumerate(self.lines):
            _line(axis, series, {**look, "linewidth": _width(i, len(self.lines))})
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


def _unit(metric: str) -> str:
    about = meaning(metric)
    name = metric.partition("/")[0] if about else metric
    return f"{name} ({about.unit})" if about and about.unit not in ("fraction", "-") else name


def by_round(run: Run, metric: str, scale: float = 1.0) -> Curve:
    """A metric over rounds."""
    return [(r, r, scale * v) for r, v in run.series(metric)]


def _by_total(run: Run, metric: str, total: Mapping[int, float]) -> Curve:
    return [(r, total[r], v) for r, v in run.series(metric)]


def _arms(subject: Subject, curve: Callable[[Run], Curve]) -> list[tuple[Look, list[Curve]]]:
    return [(style(i), [curve(run) for run in runs]) for i, runs in enumerate(subject.arms.values())]


def arm_key(subject: Subject) -> dict[str, Look]:
    """Arm -> its look; nothing where there is only one."""
    return {arm: style(i) for i, arm in enumerate(subject.arms)} if len(subject.arms) > 1 else {}


def band_note(subject: Subject) -> str:
    """What line and band mean, where runs of several seeds are drawn as one."""
    seeded = any(len(runs) > 1 for runs in subject.arms.values())
    return "Line: mean over seeds. Band: from the least to the greatest seed." if seeded else ""


def curves(subject: Subject) -> list[Picture]:
    """For a run one picture, a panel per NAME with its scopes as lines; else a picture per NAME, a panel per scope with
    the arms as lines."""
    scoped = subject.scoped()
    if subject.kind == "run":
        (run,) = subject.all
        key = {s: {"color": c} for s, c in SCOPE_COLOUR.items() if any(s in found for found in scoped.values())}
        panels = [
            Panel(name, "round", _unit(f"{name}/global"), [(key[s], [by_round(run, f"{name}/{s}")]) for s in found])
            for name, found in scoped.items()
        ]
        return [_lines("curves", f"{' and '.join(scoped)} by round", panels, key)] if panels else []
    out = []
    for name, found in scoped.items():
        panels = []
        for s in found:
            lines = _arms(subject, lambda run, m=f"{name}/{s}": by_round(run, m))  # type: ignore[misc]
            panels.append(Panel(s, "round", _unit(f"{name}/global"), lines))
        out.append(_lines(_file(name), f"{name} by round", panels, arm_key(subject), band_note(subject)))
    return out


def others(subject: Subject) -> Picture | None:
    """Privacy spent and the method's own numbers, by round."""
    shown = [
        m for m in subject.telling() if m.partition("/")[0] not in ("clusters", *subject.scoped())
    ][:MOST_PANELS]  # fmt: skip
    return _by_round(subject, "others", "Other metrics by round", {m: (m, _unit(m), 1.0) for m in shown}, zero=False)


def clusters(subject: Subject) -> Picture | None:
    """Found clusters by round, if the method has any."""
    return _by_round(subject, "clusters", "Clusters by round", {
        "clusters/ari": ("agreement with the planted groups", "adjusted Rand index", 1.0),
        "clusters/count": ("clusters in use", "clusters", 1.0),
    })  # fmt: skip


def cost(subject: Subject) -> Picture | None:
    """Bytes and time by round."""
    shown = _by_round(subject, "cost", "Cost by round", {
        "bytes/up": ("sent by clients", "MB per round", 1e-6),
        "bytes/down": ("sent to clients", "MB per round", 1e-6),
        "time/round": ("wall time, without evaluation", "seconds per round", 1.0),
        "time/simulated": ("virtual time since the start", "seconds", 1.0),
    })  # fmt: skip
    if shown is None or not _bytes(subject):
        return shown

    def total(run: Run) -> Curve:
        return [(r, r, v * 1e-6) for r, v in run.total("bytes/up", "bytes/down").items()]

    both = Panel("both directions, since the start", "round", "MB", _arms(subject, total), from_zero=True)
    return Picture(shown.name, shown.title, [*shown.panels[:2], both.paint, *shown.panels[2:]], shown.key, shown.note)


def _bytes(subject: Subject) -> bool:
    return all(m in subject.metrics for m in ("bytes/up", "bytes/down"))


def worth(subject: Subject) -> Picture | None:
    """What the megabytes and the seconds bought: the first NAME against what was spent so far."""
    name = next(iter(subject.scoped()), None)
    if name is None:
        return None
    scopes = [s for s in ("global", "personal") if s in subject.scoped()[name]]
    spent: dict[str, tuple[str, ...]] = {}
    if _bytes(subject):
        spent["MB sent, both directions"] = ("bytes/up", "bytes/down")
    if "time/round" in subject.metrics:
        spent["seconds in rounds"] = ("time/round",)

    def curve(run: Run, metric: str, x: str) -> Curve:
        scale = 1e-6 if x.startswith("MB") else 1.0
        return _by_total(run, metric, {r: scale * v for r, v in run.total(*spent[x]).items()})

    panels = []
    for x in spent:
        if subject.kind == "run":
            (run,) = subject.all
            lines: list[tuple[Look, Sequence[Curve]]] = [
                ({"color": SCOPE_COLOUR[s]}, [curve(run, f"{name}/{s}", x)]) for s in scopes
            ]
            panels.append(Panel("", x, name, lines))
            continue
        for s in scopes:
            arms = _arms(subject, lambda run, s=s, x=x: curve(run, f"{name}/{s}", x))  # type: ignore[misc]
            panels.append(Panel(f"{name}/{s}", x, name, arms))
    if not scopes or not panels:
        return None
    key = arm_key(subject)
    if subject.kind == "run":
        key = {str(s): {"color": SCOPE_COLOUR[s]} for s in scopes}
    return _lines("worth", f"{name} by what was spent", panels, key, band_note(subject))


def _lines(name: str, title: str, panels: Sequence[Panel], key: Mapping[str, Look], note: str = "") -> Picture:
    return Picture(name, title, [p.paint for p in panels], key, note)


def _by_round(
    subject: Subject, name: str, title: str, wanted: Mapping[str, tuple[str, str, float]], zero: bool = True
) -> Picture | None:
    panels = [
        Panel(heading, "round", unit, _arms(subject, lambda run, m=m, s=scale: by_round(run, m, s)), zero)  # type: ignore[misc]
        for m, (heading, unit, scale) in wanted.items()
        if m in subject.metrics
    ]
    return _lines(name, title, panels, arm_key(subject), band_note(subject)) if panels else None


# -- clients -----------------------------------------------------------------------------------------------------------


def client_metric(subject: Subject) -> str | None:
    """The per-client column to show: accuracy, or what there is."""
    columns = {k for run in subject.all for row in run.clients[:1] for k in row}
    return next((m for m in ("accuracy", "loss", "rmse") if m in columns), None)


def client_values(run: Run, metric: str, unseen: bool = False) -> list[float]:
    """The finite values of the clients that take part, or of the unseen ones."""
    return [
        v for row in run.clients if bool(row.get("unseen")) == unseen and (v := _finite(row.get(metric))) is not None
    ]


def client_sets(subject: Subject, metric: str) -> dict[str, list[float]]:
    """For a run: all clients, each planted group, the unseen ones. Else: each arm's, seeds together."""
    if subject.kind != "run":
        found = {arm: [v for run in runs for v in client_values(run, metric)] for arm, runs in subject.arms.items()}
        return {arm: values for arm, values in found.items() if values}
    (run,) = subject.all
    groups: dict[int, list[float]] = {}
    for row in run.clients:
        value, group = _finite(row.get(metric)), row.get("group")
        if value is not None and not row.get("unseen") and group is not None and group >= 0:
            groups.setdefault(group, []).append(value)
    sets = {"all clients": client_values(run, metric)}
    sets |= {f"group {g}": groups[g] for g in sorted(groups)} if 1 < len(groups) <= 6 else {}
    return {k: v for k, v in {**sets, "unseen": client_values(run, metric, unseen=True)}.items() if v}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def per_client(subject: Subject) -> Picture | None:
    """How a metric is distributed over the clients at the newest evaluation, with the worst decile marked; beside it for a
    run the clients by size, else the worst decile of every seed."""
    metric = client_metric(subject)
    sets = client_sets(subject, metric) if metric else {}
    if metric is None or not sets:
        return None
    low = lower_is_better(metric)
    single = subject.kind == "run"
    if single:
        looks: dict[str, Look] = {k: {"color": COLOURS[i - 1]} for i, k in enumerate(sets)}
        looks |= {"all clients": {"color": INK}, "unseen": {"color": COLOURS[7], "linestyle": LINES[1]}}
        looks = {k: looks[k] for k in sets}
    else:
        looks = {arm: style(i) for i, arm in enumerate(subject.arms)}

    def distribution(axis: Any) -> None:
        axis.axhspan(*((0.9, 1.0) if low else (0.0, 0.1)), color="#808080", alpha=0.14, linewidth=0)
        for i, (label, values) in enumerate(sets.items()):
            xs = sorted(values)
            n = len(xs)
            kept = sorted({round(k * (n - 1) / MOST_DOTS) for k in range(MOST_DOTS + 1)})  # as fine as the picture is
            shown = [(xs[0], 0.0), *((xs[k], (k + 1) / n) for k in kept)]
            width = _width(i, len(sets))
            axis.plot(*zip(*shown, strict=True), drawstyle="steps-post", linewidth=width, **looks[label])
            if not single or label == "all clients":
                mark = worst_decile(values, low)
                axis.plot(
                    [mark], [0.95 if low else 0.05], "D", color=looks[label]["color"], markersize=6, clip_on=False
                )
        axis.set_ylim(0, 1)
        axis.set_ylabel("share of clients at or below")
        axis.set_xlabel(f"{metric} on the client's own test split")
        axis.set_title("distribution")

    def sizes(axis: Any) -> None:
        (run,) = subject.all
        dots: dict[str, list[tuple[float, float]]] = {}
        rows = run.clients[:: max(1, math.ceil(len(run.clients) / MOST_DOTS))]
        for row in rows:
            value, n = _finite(row.get(metric)), row.get("examples")
            own = "unseen" if row.get("unseen") else f"group {row.get('group')}"
            if value is not None and n:
                dots.setdefault(own if own in looks else "all clients", []).append((n, value))
        for label, points in dots.items():
            axis.scatter(*zip(*points, strict=True), s=16, color=looks[label]["color"], alpha=0.7, linewidths=0)
        ns = [n for points in dots.values() for n, _ in points]
        if ns and max(ns) > 30 * min(ns):
            axis.set_xscale("log")
        axis.set_xlabel("training examples of the client")
        axis.set_ylabel(metric)
        axis.set_title("by number of examples")

    def worst(axis: Any) -> None:
        for i, (arm, runs) in enumerate(subject.arms.items()):
            found = [worst_decile(v, low) for run in runs if (v := client_values(run, metric))]
            if found:
                axis.scatter(found, [i] * len(found), s=26, alpha=0.6, linewidths=0, color=looks[arm]["color"])
                axis.plot([fmean(found)], [i], "D", color=looks[arm]["color"], markersize=7)
        axis.set_yticks(range(len(subject.arms)), [_short(arm) for arm in subject.arms])
        axis.set_ylim(len(subject.arms) - 0.5, -0.5)
        axis.set_xlabel(f"mean {metric} of the worst tenth")
        axis.set_title("worst decile, each seed")

    sized = single and any(row.get("examples") for row in subject.all[0].clients)
    panels = [distribution, *([sizes] if sized else [worst] if not single else [])]
    note = f"Grey: the worst tenth of the clients; diamond: their mean {metric}."
    return Picture("clients", f"{metric} of the clients at the last evaluation", panels, looks, note)


# -- maps --------------------------------------------------------------------------------------------------------------


def _map(axis: Any, colours: np.ndarray) -> None:
    axis.imshow(colours, aspect="auto", interpolation="none", origin="upper")
    axis.grid(False)


def _bands(group: np.ndarray) -> list[tuple[int, int, int]]:
    """(group, first, behind the last) of each run of equal groups."""
    import numpy as np

    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(group)]
    return [(int(group[a]), a, b) for a, b in pairwise(edges) if b > a]


def membership(subject: Subject) -> Picture | None:
    """Who is in which cluster over the evaluated rounds: of a run, or of each arm's first seed."""
    import numpy as np
    from matplotlib.colors import to_rgba

    found = {arm: (run.seed, run.membership) for arm, runs in subject.arms.items() for run in runs[:1]}
    shown = {arm: (seed, m) for arm, (seed, m) in found.items() if m is not None}
    left = len(shown) - MOST_PANELS
    shown = dict(list(shown.items())[:MOST_PANELS])
    if not shown:
        return None
    ids = sorted({int(k) for _, m in shown.values() for k in np.unique(m.cluster) if k >= 0})
    palette = np.array([to_rgba(COLOURS[k % len(COLOURS)]) for k in range(max(ids) + 1)] + [(0, 0, 0, 0)])

    def paint(axis: Any, arm: str) -> None:
        seed, m = shown[arm]
        _map(axis, palette[m.cluster])  # -1 takes the last colour, which is none
        bands = [b for b in _bands(m.group) if b[0] >= 0]
        if bands:
            axis.set_yticks([(a + b - 1) / 2 for _, a, b in bands], [f"group {g}" for g, _, _ in bands])
            axis.tick_params(axis="y", length=0)
            for _, a, _ in bands[1:]:
                axis.axhline(a - 0.5, color=INK, linewidth=1.2)
        else:
            axis.set_ylabel("clients")
        step = max(1, math.ceil(len(m.rounds) / 8))
        axis.set_xticks(range(0, len(m.rounds), step), [str(r) for r in m.rounds[::step]])
        axis.set_xlabel("evaluated round")
        if subject.kind != "run":
            axis.set_title(arm if len(subject.arms[arm]) == 1 else f"{arm}, seed {seed}")

    planted = any((m.group >= 0).any() for _, m in shown.values())
    note = f"A row is a client{', by planted group' if planted else ''}; no colour: not in a cluster or not scored."
    note += f" {left} more arms have clusters." if left > 0 else ""
    if any(m.thinned for _, m in shown.values()):
        note += " Some evaluated rounds are left out."
    key = {f"cluster {k}": {"color": COLOURS[k % len(COLOURS)], "block": True} for k in ids[:12]}
    note += f" Clusters from {ids[12]} on use the same colours again." if len(ids) > 12 else ""
    panels = [lambda axis, arm=arm: paint(axis, arm) for arm in shown]
    return Picture("membership", "Who is in which cluster", panels, key, note, wide=len(panels) == 1)


def partition(run: Run, name: str = "partition", about: str = "") -> Picture | str:
    """Clients x classes, the deeper the more examples; or the reason why it is left out."""
    import numpy as np
    from matplotlib.colors import to_rgba

    found = holdings(run)
    if isinstance(found, str):
        return found
    last = int(found.group.max()) + 1
    block = np.where(found.unseen, last, found.group)
    main = np.argmax(found.counts, 1)
    order = np.lexsort((-found.counts.max(1), main, block))
    counts, block = found.counts[order], block[order]
    edges = sorted({round(e) for e in np.geomspace(1, max(2, counts.max() + 1), 6)})
    level = np.digitize(counts, edges)  # 0 is none
    alpha = np.concatenate([[0.0], np.linspace(0.18, 1.0, len(edges) - 1)])
    colours = np.empty((counts.shape[1], len(counts), 4))
    colours[..., :3] = to_rgba(COLOURS[0])[:3]
    colours[..., 3] = alpha[np.minimum(level, len(alpha) - 1)].T

    def paint(axis: Any) -> None:
        _map(axis, colours)
        names, n = found.label_names, counts.shape[1]
        if n <= 20 and len(names) == n:
            axis.set_yticks(range(n), [_short(x) for x in names])
            axis.tick_params(axis="y", length=0)
        axis.set_ylabel("class")
        axis.set_xlabel("clients")
        bands = _bands(block)
        for _, a, _ in bands[1:]:
            axis.axvline(a - 0.5, color=INK, linewidth=1.2)
        if 1 < len(bands) <= 12:
            top = axis.secondary_xaxis("top")
            words = ["unseen" if g == last else f"group {g}" if g >= 0 else "" for g, _, _ in bands]
            top.set_xticks([(a + b - 1) / 2 for _, a, b in bands], words)
            top.tick_params(length=0)
            top.spines["top"].set_visible(False)
        axis.set_xticks([])

    key = {}
    for i, (a, b) in enumerate(pairwise(edges)):
        words = str(a) if b == a + 1 else f"{a}–{b - 1}"
        key[f"{words} example{'s' * (words != '1')}" if i == 0 else words] = {
            "color": COLOURS[0],
            "alpha": float(alpha[i + 1]),
            "block": True,
        }
    note = f"A column is a client. {holdings_text(found)}"
    return Picture(name, f"Training examples by client and class{about}", [paint], key, note, wide=True)


def holdings_text(found: Holdings) -> str:
    """Sizes and classes in one sentence."""
    import numpy as np

    sizes, classes = found.counts.sum(1), (found.counts > 0).sum(1)
    return (
        f"{len(sizes):,} clients hold {sizes.sum():,} training examples: {sizes.min():,} to {sizes.max():,}, median "
        f"{np.median(sizes):g}; a client has {classes.mean():.1f} of {found.counts.shape[1]} classes on average."
    )
