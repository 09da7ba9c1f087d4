"""What runs, studies and sweeps look like in a notebook: a table and a picture, and the curves alone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayfed.errors import ConfigError, nearest
from rayfed.report import curves, results
from rayfed.report.html import joined, number, part
from rayfed.report.picture import Picture
from rayfed.report.subject import Subject, load
from rayfed.report.tables import result_table
from rayfed.storage.sweep_folder import counts, load_sweep


def plot(path: Path, metrics: Sequence[str] = ()) -> Picture:
    """Return the curves of a run or a study by round.

    metrics: one panel each; by default the first NAME with all its scopes. ConfigError for one that was not measured.
    """
    subject = load(path)
    if wrong := [m for m in metrics if m not in subject.metrics]:
        known = ", ".join(subject.quality_metrics())
        raise ConfigError(
            [f"metric {m!r} was not measured{nearest(m, subject.metrics)}; there is {known}" for m in wrong]
        )
    if metrics:
        return curves.chosen(subject, metrics)
    found = curves.scope_curves(subject)
    if not found:
        raise ConfigError(f"{path}: no round has been evaluated yet")
    return found[0]


def show(path: Path) -> str:
    """Return a run or a study as HTML: what it is, its final values, its first picture."""
    subject = load(path)
    values = results.final_values(subject) if subject.kind == "run" else result_table(subject)._repr_html_()
    pictures = curves.scope_curves(subject)[:1]
    return joined([_head(subject), values, *map(image, pictures)])


def show_sweep(path: Path) -> str:
    """Return a sweep as HTML: its best trials."""
    sweep = load_sweep(path)
    done = counts(sweep)
    rows = [
        [
            t.name,
            *(str(t.point.get(s)) for s in sweep.settings),
            _mean(list(t.by_seed(sweep.metric).values())),
            str(t.round),
        ]
        for t in sweep.ranked[:10]
    ]
    about = part("what", path.name, f"sweep, {done['complete']} of {done['planned']} trials complete")
    return joined([about, part("plain_table", ["trial", *sweep.settings, sweep.metric, "round"], rows)])


def image(picture: Any) -> str:
    """Return a picture as an image of its own; picture: has `_repr_png_`."""
    content = base64.b64encode(picture._repr_png_()).decode()
    return part("image", getattr(picture, "title", ""), content)


def _head(subject: Subject) -> str:
    if subject.kind == "run":
        (run,) = subject.runs
        what = f"{run.arm}, seed {run.seed}, {run.status}, round {len(run.rows)} of {run.config.get('rounds', '?')}"
    else:
        done = sum(len(runs) for runs in subject.done.values())
        what = f"{len(subject.arms)} arms, {done} of {subject.planned_runs} runs done"
    return part("what", subject.path.name, what)


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values)) if values else "–"
