"""What came out of a sweep: `sweep.parquet`, `summary.json` and `sweep.html` with its pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rayfed.report.data import mean_sd
from rayfed.storage.atomic import durable_write, json_bytes, now, yaml_bytes
from rayfed.storage.sweep_folder import Sweep, Trial, counts, load_sweep

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.report.plots import Curve, Picture

MOST_VALUES = 8  # of a setting in a picture; more numbers are drawn in ranges
MOST_MAPS, MOST_LINES = 15, 30  # heat maps on the page, trials in the first table


# -- numbers -----------------------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """(mean, standard deviation, half the width of the 95 % interval of the mean by Student's t); None where undefined."""
    if not all(math.isfinite(v) for v in values):
        return None, None, None
    mean, sd = mean_sd(values)
    if sd is None:
        return mean, None, None
    from scipy.stats import t

    return mean, sd, float(t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))


def against(trial: Trial, best: Trial, metric: str) -> dict[str, Any]:
    """The trial less the best one, paired by seed, in their last rounds: mean and 95 % interval."""
    mine, other = trial.by_seed(metric), best.by_seed(metric)
    differences = [mine[s] - other[s] for s in mine if s in other]
    mean, _, half = interval(differences)
    ci = None if mean is None or half is None else [mean - half, mean + half]
    return {"mean": mean, "ci95": ci, "n": len(differences)}


def results(sweep: Sweep) -> pa.Table:
    """A row per trial and evaluated round: trial, round, folder, the point's settings, n seeds, and of every metric its mean
    over the seeds, NAME_sd and NAME_ci95 (half the width of its 95 % interval; null with one seed)."""
    import pyarrow as pa

    flat = [(t, row) for t in sweep.trials for _, row in sorted(t.rows.items())]
    columns: dict[str, Any] = {
        "trial": pa.array([t.name for t, _ in flat], pa.string()),
        "round": pa.array([row["round"] for _, row in flat], pa.int64()),
        "folder": pa.array([row["folder"] for _, row in flat], pa.string()),
    }
    for s in sweep.settings:
        values = [row["point"].get(s) for _, row in flat]
        columns[s] = pa.array(values if _alike(values) else [text(v) for v in values])
    columns["n"] = pa.array([len(row["seeds"]) for _, row in flat], pa.int64())
    for m in dict.fromkeys(m for _, row in flat for seed in row["seeds"].values() for m in seed):
        found = [
            interval([s[m] for s in row["seeds"].values()])
            if all(s.get(m) is not None for s in row["seeds"].values())
            else (None,) * 3
            for _, row in flat
        ]
        for suffix, column in zip(("", "_sd", "_ci95"), zip(*found, strict=True), strict=True):
            columns[m + suffix] = pa.array(column, pa.float64())
    return pa.table(columns)


def _alike(values: Iterable[Any]) -> bool:
    kinds = {float if isinstance(v, int) and not isinstance(v, bool) else type(v) for v in values if v is not None}
    return len(kinds) <= 1 and kinds <= {float, str, bool}


def summarise(sweep: Sweep, ended: bool, failed: int = 0) -> dict[str, Any]:
    """The content of summary.json; ended: False where the sweep was interrupted; failed: number of trials."""
    trials = counts(sweep)
    best = sweep.ranked[0] if sweep.ranked else None
    shown = []
    for t in sweep.ranked[:10]:
        mean, sd, half = interval(list(t.by_seed(sweep.metric).values()))
        shown.append({
            "trial": t.name, "folder": t.last["folder"], "point": t.point, "round": t.last["round"], "complete": t.complete,
            "value": mean, "sd": sd, "ci95": half, "seeds": t.by_seed(sweep.metric),
            "difference": None if best is None or t is best else against(t, best, sweep.metric),
        })  # fmt: skip
    stopping = sweep.about["options"]["scheduler"] == "asha"
    whole = ended and not failed and trials["planned"] == trials["begun" if stopping else "complete"]
    return {
        "kind": "sweep", "status": "done" if whole else "incomplete", "metric": sweep.metric, "mode": sweep.about["mode"],
        "trials": trials, "failed": failed,
        "rounds": sum(max(t.rows) * len(t.last["seeds"]) for t in sweep.trials), "best": shown,
    }  # fmt: skip


def write_sweep(path: Path | str, ended: bool = True, failed: int = 0) -> dict[str, Any]:
    """Write `sweep.parquet`, `summary.json`, `sweep.html` and `plots/`; returns the summary. Works on unfinished ones too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sweep = load_sweep(path)
    sink = pa.BufferOutputStream()
    pq.write_table(results(sweep), sink)
    durable_write(sweep.path / "sweep.parquet", sink.getvalue())
    out = summarise(sweep, ended, failed)
    durable_write(sweep.path / "summary.json", json_bytes(out, 1))
    html, pictures = render(sweep, out)
    plots = sweep.path / "plots"
    plots.mkdir(exist_ok=True)
    for picture in pictures:
        durable_write(plots / f"{picture.name}.png", picture.png(), sync=False)
    durable_write(sweep.path / "sweep.html", html.encode(), sync=False)
    return out


# -- words -------------------------------------------------------------------------------------------------------------


def short(settings: Iterable[str]) -> dict[str, str]:
    """setting -> the shortest end of its name that no other has."""
    settings, out = list(settings), {}
    for s in settings:
        parts = s.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        taken = [o for o in settings if o != s]
        out[s] = next((e for e in ends if not any(o == e or o.endswith(f".{e}") for o in taken)), s)
    return out


def text(value: Any) -> str:
    """A value for a reader: 0.30000001 -> 0.3; {kind: dirichlet, alpha: 1} -> dirichlet(alpha=1)."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        head = next((k for k in ("kind", "name") if k in value), None)
        rest = " ".join(f"{k}={text(v)}" for k, v in value.items() if k != head)
        return (f"{value[head]}({rest})" if rest else str(value[head])) if head else f"{{{rest}}}"
    return ",".join(text(v) for v in value) if isinstance(value, list | tuple) else str(value)


def label(point: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """`clusters=3 alpha=0.1`."""
    names = short(point) if names is None else names
    return " ".join(f"{names.get(k, k)}={text(v)}" for k, v in point.items())


# -- pictures ----------------------------------------------------------------------------------------------------------


class Axis:
    """A setting as places on an axis: one per value, or per range where there are many numbers."""

    def __init__(self, sweep: Sweep, setting: str):
        found = [t.point.get(setting) for t in sweep.trials]
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        written = sweep.about["swept"][setting]
        listed = [v for v in written if v in found] if isinstance(written, list) else []
        values = listed + [v for v in found if v not in listed]
        unique: list[Any] = [v for i, v in enumerate(values) if v not in values[:i]]
        if numbers:
            unique = sorted(unique)
        self.edges: list[float] = []
        if numbers and len(unique) > MOST_VALUES:
            n = 5
            self.edges = [unique[round(i * (len(unique) - 1) / n)] for i in range(n + 1)]
            self.labels = [f"{text(a)}–{text(b)}" for a, b in itertools.pairwise(self.edges)]
        else:
            self.labels = [text(v) for v in unique]
        self.unique = unique
        self.numbers = numbers

    def at(self, value: Any) -> int:
        """The place of a value."""
        if not self.edges:
            return self.unique.index(value)
        return max(0, sum(value > e for e in self.edges[1:-1]))


def pictures(sweep: Sweep) -> tuple[list[Picture], Picture | None, list[Picture]]:
    """(a heat map per pair of settings, parallel coordinates, curves by each setting)."""
    from rayfed.report.plots import COLOURS, LINES, Panel
    from rayfed.report.plots import Picture as Drawn

    if not sweep.trials:
        return [], None, []
    names, metric = short(sweep.settings), sweep.metric
    axes = {s: Axis(sweep, s) for s in sweep.settings}
    final = {t.name: fmean(v) for t in sweep.trials if (v := list(t.by_seed(metric).values()))}
    scored = [t for t in sweep.trials if t.name in final]
    varied = [s for s in sweep.settings if len(axes[s].labels) > 1]

    pairs = list(itertools.combinations(varied, 2))[:MOST_MAPS]
    cells: dict[tuple[str, str], dict[tuple[int, int], list[Trial]]] = {}
    for a, b in pairs:
        found: dict[tuple[int, int], list[Trial]] = {}
        for t in scored:
            found.setdefault((axes[b].at(t.point[b]), axes[a].at(t.point[a])), []).append(t)
        cells[a, b] = found
    means = {p: {k: fmean(final[t.name] for t in ts) for k, ts in found.items()} for p, found in cells.items()}
    every = [v for found in means.values() for v in found.values() if math.isfinite(v)]
    span = (min(every, default=0.0), max(every, default=1.0))

    def heat(a: str, b: str) -> Any:
        def paint(axis: Any) -> None:
            short_of = {k for k, ts in cells[a, b].items() if not all(t.complete for t in ts)}
            _heat(axis, means[a, b], short_of, axes[a].labels, axes[b].labels, span, sweep.sign)
            axis.set_xlabel(names[a])
            axis.set_ylabel(names[b])

        return paint

    maps = []
    for a, b in pairs:
        title = f"{metric}: {names[a]} and {names[b]}"
        maps.append(Drawn(f"heat-{_safe(names[a])}-{_safe(names[b])}", title, [heat(a, b)], {}, narrow=True))
    lines: list[Picture] = []
    for s in varied:
        curves: dict[int, list[Curve]] = {}
        for t in scored:
            curve = [
                (r, r, fmean(v))
                for r, row in t.rows.items()
                if (v := [x[metric] for x in row["seeds"].values() if metric in x])
            ]
            curves.setdefault(axes[s].at(t.point[s]), []).append(curve)
        looks = {
            k: {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
            for i, k in enumerate(sorted(curves))
        }
        panel = Panel(names[s], "round", metric, [(looks[k], curves[k]) for k in sorted(curves)])
        note = "Line: mean over the trials with this value. Band: from the least to the greatest of them."
        key = {f"{names[s]}={axes[s].labels[k]}": looks[k] for k in sorted(curves)}
        lines.append(Drawn(f"curves-{_safe(names[s])}", f"{metric} by round and {names[s]}", [panel.paint], key, note))
    parallel = None
    if varied and len(scored) > 1:

        def paint(axis: Any) -> None:
            _parallel(
                axis,
                [(names[s], axes[s], [t.point[s] for t in scored]) for s in varied],
                [final[t.name] for t in scored],
                metric,
                sweep.sign,
            )

        note = "A line per trial, from its settings to its result. Yellow is best, drawn last."
        parallel = Drawn("parallel", "Parallel coordinates", [paint], {}, note, wide=True)
    return maps, parallel, lines


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _heat(
    axis: Any,
    cells: Mapping[tuple[int, int], float],
    short_of: Collection[tuple[int, int]],
    xs: Sequence[str],
    ys: Sequence[str],
    span: tuple[float, float],
    sign: int,
) -> None:
    """Cells (y, x); those of `short_of` get a star. span: least and greatest value of the colours."""
    import numpy as np

    grid = np.full((len(ys), len(xs)), np.nan)
    for (y, x), v in cells.items():
        grid[y, x] = v
    drawn = axis.imshow(
        grid, cmap="viridis" if sign > 0 else "viridis_r", aspect="auto", origin="lower", vmin=span[0], vmax=span[1]
    )
    axis.grid(False)
    axis.set_xticks(
        range(len(xs)),
        xs,
        rotation=0 if sum(map(len, xs)) < 40 else 30,
        ha="center" if sum(map(len, xs)) < 40 else "right",
    )
    axis.set_yticks(range(len(ys)), ys)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for (y, x), v in cells.items():
        r, g, b, _ = drawn.cmap(drawn.norm(v))
        ink = "#000000" if 0.3 * r + 0.6 * g + 0.1 * b > 0.5 else "#ffffff"
        said = (f"{v:.3g}" if abs(v) >= 1 else f"{v:.3f}") + ("*" if (y, x) in short_of else "")
        axis.text(x, y, said, ha="center", va="center", color=ink, fontsize=9)
    axis.figure.colorbar(drawn, ax=axis).outline.set_visible(False)


def _parallel(
    axis: Any, columns: Sequence[tuple[str, Axis, Sequence[Any]]], scores: Sequence[float], metric: str, sign: int
) -> None:
    import matplotlib
    import numpy as np

    from rayfed.report.plots import PAPER

    def scaled(v: float, low: float, high: float) -> float:
        return 0.5 if high == low else (v - low) / (high - low)

    beneath = {"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none"}  # the lines do not cross a label
    heights: list[list[float]] = []
    for i, (_, places, values) in enumerate(columns):
        n = len(places.labels)
        if places.edges:  # many numbers: where they lie, by logarithm where they span more than a hundredfold
            log = min(values) > 0 and max(values) / min(values) > 100
            at = [math.log(v) if log else float(v) for v in values]
            heights.append([scaled(v, min(at), max(at)) for v in at])
            marks = [(0.0, text(min(values))), (1.0, text(max(values)))]
        else:
            heights.append([scaled(places.at(v), 0, n - 1) for v in values])
            marks = [(scaled(k, 0, n - 1), name) for k, name in enumerate(places.labels)]
        axis.axvline(i, color="#808080", linewidth=0.8)
        for y, name in marks:
            axis.text(i - 0.03, y, name, ha="right", va="center", fontsize=8, zorder=5, bbox=beneath)
    low, high = min(scores), max(scores)
    heights.append([scaled(v, low, high) for v in scores])
    axis.axvline(len(columns), color="#808080", linewidth=0.8)
    for y, v in ((0.0, low), (1.0, high)):
        axis.text(len(columns) + 0.03, y, f"{v:.4g}", ha="left", va="center", fontsize=8)
    order = np.argsort([sign * v for v in scores], kind="stable")
    colours = matplotlib.colormaps["viridis"]
    for rank, j in enumerate(order):
        colour = colours(rank / max(1, len(order) - 1))
        axis.plot(range(len(heights)), [h[j] for h in heights], color=colour, alpha=0.85, linewidth=1.2)
    axis.set_xticks(range(len(heights)), [*(n for n, _, _ in columns), metric])
    axis.set_yticks([])
    axis.set_xlim(-0.35, len(columns) + 0.3)
    axis.grid(False)
    axis.spines["left"].set_visible(False)


# -- the page ----------------------------------------------------------------------------------------------------------


def render(sweep: Sweep, summary: Mapping[str, Any]) -> tuple[str, list[Picture]]:
    """(the page, its pictures): one self-contained file, light and dark."""
    from rayfed.report.page import _figures, _part
    from rayfed.report.style import CSS

    maps, parallel, lines = pictures(sweep)
    o, t = sweep.about["options"], summary["trials"]
    facts = {
        "spaces": ", ".join(sweep.about["spaces"]), "search": o["search"], "scheduler": o["scheduler"],
        "trials": f"{t['complete']} complete, {t['begun']} begun of {t['planned']}", "seeds": ", ".join(map(str, o["seeds"])),
        "metric": f"{sweep.metric} ({'more' if sweep.sign > 0 else 'less'} is better)", "rounds": str(sweep.about["rounds"]),
        "method": str(sweep.about["config"]["method"]["name"]), "status": summary["status"],
    }  # fmt: skip
    items = "".join(f'<li><span class="soft">{escape(k)}</span> <b>{escape(v)}</b></li>' for k, v in facts.items())
    swept = "".join(f"<li><code>{escape(k)}</code>: {escape(text(v))}</li>" for k, v in sweep.about["swept"].items())
    repeat = f'<pre class="command"><code>{escape(sweep.about["command"])}\nrayfed sweep --resume {escape(str(sweep.path))}</code></pre>'
    config = escape(yaml_bytes(sweep.about["config"]).decode())
    made = " · ".join(f"{escape(k)} <b>{escape(str(v))}</b>" for k, v in sweep.about["versions"].items())
    when = now()[:16].replace("T", " ")
    sections = [
        f'<h1>{escape(sweep.about["name"])}</h1><p class="soft">Sweep · report of {when} UTC</p><ul class="facts">{items}</ul>',
        "<h2>Best trials</h2>" + _trials(sweep),
        f'<h2>Pairs of settings</h2><div class="side">{_figures(maps)}</div>{_about_maps(sweep)}' if maps else "",
        _part("All settings", [parallel]),
        _part("Curves by group", lines),
        f"<h2>What was swept</h2><ul>{swept}</ul>",
        "<h2>Repeat it</h2>" + repeat,
        "<h2>Settings and versions</h2>"
        + f"<p>{made}</p><details><summary>config</summary><pre><code>{config}</code></pre></details>",
    ]
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(sweep.about['name'])} · rayfed sweep</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )
    return html, [p for p in (*maps, parallel, *lines) if p]


def _about_maps(sweep: Sweep) -> str:
    last = "" if all(t.complete for t in sweep.trials) else " *: with trials that have fewer rounds, at their last."
    said = f"Mean over the trials with both values, after {sweep.about['rounds']} rounds; one scale of colours for all.{last}"
    return f'<p class="caption">{said}</p>'


def _trials(sweep: Sweep) -> str:
    from rayfed.report.page import _table, number

    if not sweep.trials:
        return "<p>No trial has been evaluated yet.</p>"
    names, best, body = short(sweep.settings), sweep.ranked[0], []
    for i, t in enumerate(sweep.ranked):
        mean, _, half = interval(list(t.by_seed(sweep.metric).values()))
        value = number(mean) + ("" if half is None else f' <span class="sd">± {number(half)}</span>')
        gap = "–"
        if t is not best and (d := against(t, best, sweep.metric))["mean"] is not None:
            gap = number(d["mean"], sign=True)
            if d["ci95"]:
                low, high = d["ci95"]
                gap += f' <span class="sd">{number(low, sign=True)} to {number(high, sign=True)}</span>'
        rounds = str(max(t.rows)) + ("" if t.complete else ' <span class="sd">stopped</span>')
        cells = [escape(text(t.point.get(s))) for s in sweep.settings]
        body.append([str(i + 1), *cells, f"<b>{value}</b>" if t is best else value, gap, rounds, escape(t.name)])
    head = ["", *(escape(names[s]) for s in sweep.settings), escape(sweep.metric), "less the best", "rounds", "trial"]
    about = (
        "Mean over the seeds ± half the 95 % interval of the mean; the difference from the best trial is paired by seed, with its "
        "95 % interval. The best of many trials is a little better than it would be again: the same seeds chose it."
    )
    first = _table(head, body[:MOST_LINES], about)
    rest = body[MOST_LINES:]
    return first + (f"<details><summary>{len(rest)} more</summary>{_table(head, rest)}</details>" if rest else "")
