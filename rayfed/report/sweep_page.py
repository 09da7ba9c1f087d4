"""The HTML page of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayfed.report.html import document, figures, headline, joined, number, part, section, spread, table
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
    settings = [part("setting", k, value_text(v)) for k, v in sweep.about["swept"].items()]
    commands = f"{sweep.about['command']}\nrayfed sweep --resume {sweep.path}"
    config = yaml_bytes(sweep.about["config"]).decode()
    sections = [
        headline(sweep.about["name"], "Sweep", facts),
        joined(part("paragraph", note) for note in summary["notes"]),
        part("section", "Best trials", _trials(sweep)),
        part("section", "Pairs of settings", joined([part("side", figures(maps)), _maps_caption(sweep)]))
        if maps
        else "",
        section("All settings", [parallel]),
        section("Curves by setting", curves),
        part("section", "What was swept", part("items", settings)),
        part("section", "Repeat it", part("code", commands, "command")),
        part(
            "section",
            "Settings and versions",
            joined(
                [
                    part("paragraph", part("versions", sweep.about["versions"])),
                    part("details", "config", part("code", config)),
                ]
            ),
        ),
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
    return part("paragraph", text, "caption")


def _trials(sweep: Sweep) -> str:
    """Return the table of trials, best first."""
    if not sweep.trials:
        return part("paragraph", "No trial has been evaluated yet.")
    names, body = short_names(sweep.settings), []
    best = sweep.ranked[0] if sweep.ranked else None
    reference = best.by_seed(sweep.metric) if best else {}
    for i, t in enumerate(sweep.ranked):
        mean, _, half = mean_interval(list(t.by_seed(sweep.metric).values()))
        value = joined([number(mean), spread(half)])
        gap = "–" if t is best else _difference(paired_difference(t.by_seed(sweep.metric), reference))
        rounds = joined([str(t.round), "" if t.complete else " ", "" if t.complete else part("small", "stopped")])
        settings = [value_text(t.point.get(s)) for s in sweep.settings]
        body.append([str(i + 1), *settings, part("bold", value) if t is best else value, gap, rounds, t.name])
    for t in sweep.unsound:
        settings = [value_text(t.point.get(s)) for s in sweep.settings]
        body.append(["–", *settings, str(t.outcome), "–", str(t.round), t.name])
    head = ["", *(names[s] for s in sweep.settings), sweep.metric, "minus the best", "rounds", "trial"]
    about = (
        "Mean over the seeds ± half the 95 % interval of the mean; the difference from the best trial is paired by seed, with its "
        "95 % interval. The best of many trials is a little better than it would be again: the same seeds chose it."
    )
    first, rest = table(head, body[:MAX_LINES], about), body[MAX_LINES:]
    return joined([first, part("details", f"{len(rest)} more", table(head, rest)) if rest else ""])


def _difference(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    text = number(found["mean"], sign=True)
    if found["ci95"]:
        low, high = found["ci95"]
        text = joined([text, " ", part("small", f"{number(low, sign=True)} to {number(high, sign=True)}")])
    return text
