"""Pictures of a sweep: heat maps of pairs of settings, parallel coordinates, and curves by setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from rayfed.report.curves import Curve, Panel
from rayfed.report.picture import PAPER, Picture, line_style
from rayfed.report.point_text import short_names, value_text
from rayfed.storage.sweep_folder import Sweep, Trial

MAX_VALUES = 8  # of a setting in a picture; more numbers are drawn in ranges
RANGES = 5
MAX_MAPS = 15  # heat maps
GREY = "#808080"


class SettingAxis:
    """The values of a setting as places 0, 1, ... on an axis: one per value, or per range where there are many numbers."""

    def __init__(self, sweep: Sweep, setting: str):
        found = [t.point.get(setting) for t in sweep.trials]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        domain = sweep.about["swept"][setting]
        listed = [v for v in domain if v in found] if isinstance(domain, list) else []
        values = listed + [v for v in found if v not in listed]
        self.values: list[Any] = [v for i, v in enumerate(values) if v not in values[:i]]
        if numbers:
            self.values = sorted(self.values)
        self.edges: list[float] = []  # of the ranges
        if numbers and len(self.values) > MAX_VALUES:
            last = len(self.values) - 1
            self.edges = [self.values[round(i * last / RANGES)] for i in range(RANGES + 1)]
            self.labels = [f"{value_text(a)}–{value_text(b)}" for a, b in itertools.pairwise(self.edges)]
        else:
            self.labels = [value_text(v) for v in self.values]

    def place(self, value: Any) -> int:
        """Return the place of a value."""
        if not self.edges:
            return self.values.index(value)
        return max(0, sum(value > e for e in self.edges[1:-1]))


class _Drawn(NamedTuple):
    """What all pictures of a sweep share: axes and short names of the settings that vary, trials with their final values."""

    sweep: Sweep
    axes: dict[str, SettingAxis]
    names: dict[str, str]
    trials: list[Trial]
    final: dict[str, float]


def pictures(sweep: Sweep) -> tuple[list[Picture], Picture | None, list[Picture]]:
    """Return (a heat map per pair of settings, parallel coordinates, curves by each setting)."""
    if not sweep.ranked:
        return [], None, []
    axes = {s: SettingAxis(sweep, s) for s in sweep.settings}
    varied = {s: axis for s, axis in axes.items() if len(axis.labels) > 1}
    sound = [t for t in sweep.trials if t.rows and not t.outcome]
    final = {t.name: fmean(v) for t in sound if (v := list(t.by_seed(sweep.metric).values()))}
    scored = [t for t in sound if t.name in final]
    drawn = _Drawn(sweep, varied, short_names(sweep.settings), scored, final)
    return _heat_maps(drawn), _parallel_coordinates(drawn), [_curves(drawn, s) for s in varied]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


# -- heat maps ---------------------------------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """The cells (y, x) of a heat map: means over their trials, and those with trials that are not complete."""

    x: str  # settings
    y: str
    means: dict[tuple[int, int], float]
    incomplete: set[tuple[int, int]]


def _cells(drawn: _Drawn, x: str, y: str) -> _Cells:
    trials: dict[tuple[int, int], list[Trial]] = {}
    for t in drawn.trials:
        trials.setdefault((drawn.axes[y].place(t.point[y]), drawn.axes[x].place(t.point[x])), []).append(t)
    means = {cell: fmean(drawn.final[t.name] for t in found) for cell, found in trials.items()}
    return _Cells(x, y, means, {cell for cell, found in trials.items() if not all(t.complete for t in found)})


def _heat_maps(drawn: _Drawn) -> list[Picture]:
    pairs = list(itertools.combinations(drawn.axes, 2))[:MAX_MAPS]
    maps = [_cells(drawn, x, y) for x, y in pairs]
    values = [v for cells in maps for v in cells.means.values() if math.isfinite(v)]
    limits = (min(values, default=0.0), max(values, default=1.0))  # one scale of colours for all
    out = []
    for cells in maps:
        x, y = drawn.names[cells.x], drawn.names[cells.y]
        paint = partial(_paint_heat, drawn=drawn, cells=cells, limits=limits)
        name, title = f"heat-{_file_name(x)}-{_file_name(y)}", f"{drawn.sweep.metric}: {x} and {y}"
        out.append(Picture(name, title, [paint], {}, narrow=True))
    return out


def _paint_heat(axis: Any, drawn: _Drawn, cells: _Cells, limits: tuple[float, float]) -> None:
    """Draw cells with their values; a star marks those with incomplete trials. limits: least and greatest value of the colours."""
    import numpy as np

    xs, ys = drawn.axes[cells.x].labels, drawn.axes[cells.y].labels
    grid = np.full((len(ys), len(xs)), np.nan)
    for (y, x), v in cells.means.items():
        grid[y, x] = v
    colours = "viridis" if drawn.sweep.sign > 0 else "viridis_r"
    image = axis.imshow(grid, cmap=colours, aspect="auto", origin="lower", vmin=limits[0], vmax=limits[1])
    axis.grid(False)
    fits = sum(map(len, xs)) < 40
    axis.set_xticks(range(len(xs)), xs, rotation=0 if fits else 30, ha="center" if fits else "right")
    axis.set_yticks(range(len(ys)), ys)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for (y, x), v in cells.means.items():
        r, g, b, _ = image.cmap(image.norm(v))
        ink = "#000000" if 0.3 * r + 0.6 * g + 0.1 * b > 0.5 else "#ffffff"
        star = "*" if (y, x) in cells.incomplete else ""
        text = (f"{v:.3g}" if abs(v) >= 1 else f"{v:.3f}") + star
        axis.text(x, y, text, ha="center", va="center", color=ink, fontsize=9)
    axis.figure.colorbar(image, ax=axis).outline.set_visible(False)
    axis.set_xlabel(drawn.names[cells.x])
    axis.set_ylabel(drawn.names[cells.y])


# -- curves ------------------------------------------------------------------------------------------------------------


def _curves(drawn: _Drawn, setting: str) -> Picture:
    """Draw the metric by round, a line per value of the setting over all trials with it."""
    metric, axis, name = drawn.sweep.metric, drawn.axes[setting], drawn.names[setting]
    curves: dict[int, list[Curve]] = {}
    for t in drawn.trials:
        curves.setdefault(axis.place(t.point[setting]), []).append(_curve(t, metric))
    places = sorted(curves)
    styles = {place: line_style(i) for i, place in enumerate(places)}
    panel = Panel(name, "round", metric, [(styles[place], curves[place]) for place in places])
    key = {f"{name}={axis.labels[place]}": styles[place] for place in places}
    note = "Line: mean over the trials with this value. Band: from the least to the greatest of them."
    return Picture(f"curves-{_file_name(name)}", f"{metric} by round and {name}", [panel.paint], key, note)


def _curve(trial: Trial, metric: str) -> Curve:
    """Return the mean over a trial's seeds, by round."""
    points = []
    for r, row in trial.rows.items():
        if values := [seed[metric] for seed in row["seeds"].values() if metric in seed]:
            points.append((r, r, fmean(values)))
    return points


# -- parallel coordinates ----------------------------------------------------------------------------------------------


def _parallel_coordinates(drawn: _Drawn) -> Picture | None:
    if not drawn.axes or len(drawn.trials) < 2:
        return None
    note = "A line per trial, from its settings to its result. Yellow is best, drawn last."
    return Picture("parallel", "Parallel coordinates", [partial(_paint_parallel, drawn=drawn)], {}, note, wide=True)


def _scaled(value: float, low: float, high: float) -> float:
    """Scale [low, high] to [0, 1]."""
    return 0.5 if high == low else (value - low) / (high - low)


def _heights(axis: SettingAxis, values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the height of each value in its column, and (height, label) of the column's marks."""
    if axis.edges:  # many numbers are drawn to scale, logarithmic where they span more than a hundredfold
        log = min(values) > 0 and max(values) / min(values) > 100
        scale = [math.log(v) if log else float(v) for v in values]
        marks = [(0.0, value_text(min(values))), (1.0, value_text(max(values)))]
        return [_scaled(v, min(scale), max(scale)) for v in scale], marks
    last = len(axis.labels) - 1
    marks = [(_scaled(place, 0, last), label) for place, label in enumerate(axis.labels)]
    return [_scaled(axis.place(v), 0, last) for v in values], marks


def _paint_parallel(axis: Any, drawn: _Drawn) -> None:
    """Draw a column per setting and one for the result, and a line per trial through them, best last."""
    import matplotlib
    import numpy as np

    scores = [drawn.final[t.name] for t in drawn.trials]
    label_box = {"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none"}  # keeps lines off the labels
    columns: list[list[float]] = []
    for i, (setting, places) in enumerate(drawn.axes.items()):
        heights, marks = _heights(places, [t.point[setting] for t in drawn.trials])
        columns.append(heights)
        axis.axvline(i, color=GREY, linewidth=0.8)
        for y, label in marks:
            axis.text(i - 0.03, y, label, ha="right", va="center", fontsize=8, zorder=5, bbox=label_box)
    low, high = min(scores), max(scores)
    columns.append([_scaled(v, low, high) for v in scores])
    last = len(columns) - 1
    axis.axvline(last, color=GREY, linewidth=0.8)
    for y, v in ((0.0, low), (1.0, high)):
        axis.text(last + 0.03, y, f"{v:.4g}", ha="left", va="center", fontsize=8)
    order = np.argsort([drawn.sweep.sign * v for v in scores], kind="stable")
    colours = matplotlib.colormaps["viridis"]
    for rank, trial in enumerate(order):
        colour = colours(rank / max(1, len(order) - 1))
        axis.plot(range(len(columns)), [c[trial] for c in columns], color=colour, alpha=0.85, linewidth=1.2)
    axis.set_xticks(range(len(columns)), [*(drawn.names[s] for s in drawn.axes), drawn.sweep.metric])
    axis.set_yticks([])
    axis.set_xlim(-0.35, last + 0.3)
    axis.grid(False)
    axis.spines["left"].set_visible(False)
