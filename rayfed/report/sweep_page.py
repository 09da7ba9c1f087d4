"""The HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rayfed.report.html import document, figures, headline, number, section, table
from rayfed.report.picture import Picture
from rayfed.report.point_text import short_names, value_text
from rayfed.report.statistics import mean_interval, paired_difference
from rayfed.report.sweep_pictures import pictures
from rayfed.storage.sweep_folder import Sweep
from rayfed.storage.text_files import yaml_bytes

MAX_LINES = 30  # trials shown without opening


def render(sweep: Sweep, summary: Mapping[str, Any]) -> tuple[str, list[Picture]]:
    """Return the page and its pictures: one self-contained file, light and dark. summary: as by `summarise`."""
    maps, parallel, curves = pictures(sweep)
    options, trials = sweep.about["options"], summary["trials"]
    facts = {
        "spaces": ", ".join(sweep.about["spaces"]),
        "search": options["search"],
        "scheduler": options["scheduler"],
        "trials": trials_text(trials),
        "seeds": ", ".join(map(str, options["seeds"])),
        "metric": f"{sweep.metric} ({'more' if sweep.sign > 0 else 'less'} is better)",
        "rounds": str(sweep.about["rounds"]),
        "method": str(sweep.about["config"]["method"]["name"]),
        "status": summary["status"],
    }
    settings = [f"<li><code>{escape(k)}</code>: {escape(value_text(v))}</li>" for k, v in sweep.about["swept"].items()]
    commands = f"{sweep.about['command']}\nrayfed sweep --resume {sweep.path}"
    config = escape(yaml_bytes(sweep.about["config"]).decode())
    versions = " · ".join(f"{escape(k)} <b>{escape(str(v))}</b>" for k, v in sweep.about["versions"].items())
    sections = [
        headline(sweep.about["name"], "Sweep", facts),
        "".join(f"<p>{escape(note)}</p>" for note in summary["notes"]),
        "<h2>Best trials</h2>" + _trials(sweep),
        f'<h2>Pairs of settings</h2><div class="side">{figures(maps)}</div>{_maps_caption(sweep)}' if maps else "",
        section("All settings", [parallel]),
        section("Curves by setting", curves),
        f"<h2>What was swept</h2><ul>{''.join(settings)}</ul>",
        f'<h2>Repeat it</h2><pre class="command"><code>{escape(commands)}</code></pre>',
        f"<h2>Settings and versions</h2><p>{versions}</p>"
        f"<details><summary>config</summary><pre><code>{config}</code></pre></details>",
    ]
    html = document(f"{sweep.about['name']} · rayfed sweep", sections)
    return html, [p for p in (*maps, parallel, *curves) if p]


def trials_text(trials: Mapping[str, int]) -> str:
    """Return the numbers of trials in words. trials: as `rayfed.storage.sweep_folder.counts` gives them."""
    ends = "".join(f", {trials[n]} {n}" for n in ("diverged", "failed") if trials.get(n))
    return f"{trials['complete']} complete{ends}, {trials['begun']} begun of {trials['planned']}"


def _maps_caption(sweep: Sweep) -> str:
    complete = all(t.complete for t in sweep.ranked)
    star = "" if complete else " *: with trials that have fewer rounds, at their last."
    rounds = sweep.about["rounds"]
    without = " Without trials that diverged or failed." if sweep.unsound else ""
    text = f"Mean over the trials with both values, after {rounds} rounds; one scale of colours for all.{star}{without}"
    return f'<p class="caption">{text}</p>'


def _trials(sweep: Sweep) -> str:
    """Return the table of trials, best first."""
    if not sweep.trials:
        return "<p>No trial has been evaluated yet.</p>"
    names, body = short_names(sweep.settings), []
    best = sweep.ranked[0] if sweep.ranked else None
    reference = best.by_seed(sweep.metric) if best else {}
    for i, t in enumerate(sweep.ranked):
        mean, _, half = mean_interval(list(t.by_seed(sweep.metric).values()))
        value = number(mean) + ("" if half is None else f' <span class="sd">± {number(half)}</span>')
        gap = "–" if t is best else _difference(paired_difference(t.by_seed(sweep.metric), reference))
        rounds = str(t.round) + ("" if t.complete else ' <span class="sd">stopped</span>')
        settings = [escape(value_text(t.point.get(s))) for s in sweep.settings]
        body.append([str(i + 1), *settings, f"<b>{value}</b>" if t is best else value, gap, rounds, escape(t.name)])
    for t in sweep.unsound:
        settings = [escape(value_text(t.point.get(s))) for s in sweep.settings]
        body.append(["–", *settings, escape(str(t.outcome)), "–", str(t.round), escape(t.name)])
    head = ["", *(escape(names[s]) for s in sweep.settings), escape(sweep.metric), "minus the best", "rounds", "trial"]
    about = (
        "Mean over the seeds ± half the 95 % interval of the mean; the difference from the best trial is paired by seed, with its "
        "95 % interval. The best of many trials is a little better than it would be again: the same seeds chose it."
    )
    first, rest = table(head, body[:MAX_LINES], about), body[MAX_LINES:]
    return first + (f"<details><summary>{len(rest)} more</summary>{table(head, rest)}</details>" if rest else "")


def _difference(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    text = number(found["mean"], sign=True)
    if found["ci95"]:
        low, high = found["ci95"]
        text += f' <span class="sd">{number(low, sign=True)} to {number(high, sign=True)}</span>'
    return text
