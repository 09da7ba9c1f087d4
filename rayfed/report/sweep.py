"""The results of a sweep: `sweep.parquet`, `summary.json`, and `sweep.html` with its pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.report.point_text import value_text
from rayfed.report.statistics import mean_interval, paired_difference
from rayfed.storage.atomic import durable_write
from rayfed.storage.events import read_events
from rayfed.storage.sweep_folder import Sweep, Trial, counts, load_sweep
from rayfed.storage.text_files import json_bytes

if TYPE_CHECKING:
    import pyarrow as pa

BEST = 10  # trials in the summary


def write_sweep(path: Path | str, ended: bool = True, failed: int = 0) -> dict[str, Any]:
    """Write `sweep.parquet`, `summary.json`, `sweep.html` and `plots/` of a sweep, finished or not, and return the summary.

    ended: False where the sweep was interrupted; failed: number of trials. ConfigError if the folder is not a sweep's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayfed.report.sweep_page import render

    sweep = load_sweep(path)
    sink = pa.BufferOutputStream()
    pq.write_table(results(sweep), sink)
    durable_write(sweep.path / "sweep.parquet", sink.getvalue())
    summary = summarise(sweep, ended, failed)
    durable_write(sweep.path / "summary.json", json_bytes(summary, 1))
    html, pictures = render(sweep, summary)
    plots = sweep.path / "plots"
    plots.mkdir(exist_ok=True)
    for picture in pictures:
        durable_write(plots / f"{picture.name}.png", picture.png(), sync=False)
    durable_write(sweep.path / "sweep.html", html.encode(), sync=False)
    return summary


def results(sweep: Sweep) -> pa.Table:
    """Return a table with a row per trial and evaluated round.

    Columns: trial, round, folder, the point's settings, n seeds, whether the trial diverged in that round, and of every metric its
    mean over the seeds, NAME_sd and NAME_ci95 (half the width of its 95 % interval; null with one seed). The round in which a
    trial diverged has a row without metrics.
    """
    import pyarrow as pa

    rows = [(t, row) for t in sweep.trials for row in _rows(t)]
    columns: dict[str, Any] = {
        "trial": pa.array([t.name for t, _ in rows], pa.string()),
        "round": pa.array([row["round"] for _, row in rows], pa.int64()),
        "folder": pa.array([row["folder"] for _, row in rows], pa.string()),
    }
    for setting in sweep.settings:
        values = [row["point"].get(setting) for _, row in rows]
        columns[setting] = pa.array(values if _same_kind(values) else [value_text(v) for v in values])
    columns["n"] = pa.array([len(row["seeds"]) for _, row in rows], pa.int64())
    columns["diverged"] = pa.array([bool(row.get("diverged")) for _, row in rows])
    for metric in dict.fromkeys(m for _, row in rows for seed in row["seeds"].values() for m in seed):
        intervals = [_interval(row, metric) for _, row in rows]
        for suffix, column in zip(("", "_sd", "_ci95"), zip(*intervals, strict=True), strict=True):
            columns[metric + suffix] = pa.array(column, pa.float64())
    return pa.table(columns)


def _rows(trial: Trial) -> Iterator[Mapping[str, Any]]:
    """Yield a trial's rows by round, and one for the round in which it diverged."""
    diverged = trial.outcome.diverged if trial.outcome else None
    for r, row in sorted(trial.rows.items()):
        yield {**row, "diverged": r == diverged}
    if diverged is not None and diverged not in trial.rows:
        yield {**trial.last, "round": diverged, "seeds": {}, "diverged": True}


def _interval(row: Mapping[str, Any], metric: str) -> tuple[float | None, float | None, float | None]:
    """Return a metric's mean, standard deviation and half interval over a row's seeds; None unless all have it."""
    values = [seed.get(metric) for seed in row["seeds"].values()]
    return (None, None, None) if not values or any(v is None for v in values) else mean_interval(values)


def _same_kind(values: Iterable[Any]) -> bool:
    """Return whether values fit into one column: all numbers, all text or all bools, apart from None."""
    kinds = {float if isinstance(v, int) and not isinstance(v, bool) else type(v) for v in values if v is not None}
    return len(kinds) <= 1 and kinds <= {float, str, bool}


def summarise(sweep: Sweep, ended: bool, failed: int = 0) -> dict[str, Any]:
    """Return the content of summary.json; arguments as in `write_sweep`."""
    trials, metric = counts(sweep), sweep.metric
    best: list[dict[str, Any]] = []
    reference = sweep.ranked[0].by_seed(metric) if sweep.ranked else {}
    for t in sweep.ranked[:BEST]:
        mean, sd, half = mean_interval(list(t.by_seed(metric).values()))
        best.append({
            "trial": t.name, "folder": t.last["folder"], "point": t.point, "round": t.last["round"], "complete": t.complete,
            "value": mean, "sd": sd, "ci95": half, "seeds": t.by_seed(metric),
            "difference": None if t is sweep.ranked[0] else paired_difference(t.by_seed(metric), reference),
        })  # fmt: skip
    unsound = [{"trial": t.name, "folder": t.last["folder"], "point": t.point, "error": o.reason, "diverged": o.diverged}
               for t in sweep.unsound if (o := t.outcome)]  # fmt: skip
    stopped_early = sweep.about["options"]["scheduler"] == "asha"  # its trials need not be complete
    failed = max(failed, trials["failed"])
    rounds = sum(t.round * len(t.last["seeds"]) for t in sweep.trials)
    notes = [e["note"] for e in read_events(sweep.path) if "note" in e]
    results = trials["begun"] if stopped_early else trials["complete"] + trials["diverged"]
    whole = ended and not failed and trials["planned"] == results
    return {
        "kind": "sweep", "status": "done" if whole else "incomplete", "metric": metric, "mode": sweep.about["mode"],
        "trials": trials, "failed": failed, "rounds": rounds, "best": best, "notes": notes,
        "diverged": [u for u in unsound if u["diverged"] is not None], "errors": [u for u in unsound if u["diverged"] is None],
    }  # fmt: skip
