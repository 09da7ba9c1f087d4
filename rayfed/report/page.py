"""The HTML page of a run, a study or a comparison: no scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from rayfed import methods
from rayfed.errors import ConfigError
from rayfed.metrics import meaning
from rayfed.report import client_pictures, curves, results, time_pictures
from rayfed.report.html import document, duration, figures, headline, joined, part, path_text, section, table
from rayfed.report.picture import Picture
from rayfed.report.settings import differing
from rayfed.report.split_pictures import split_picture
from rayfed.report.subject import RunRecord, Subject
from rayfed.storage.saved_config import method_name
from rayfed.storage.text_files import yaml_bytes
from rayfed.storage.versions import versions

MAX_SPLITS = 3  # different splits drawn on one page
MAX_NOTES = 12  # shown without opening
MAX_VALUE = 80  # characters of a setting in the table of differences
KIND = {"run": "Run", "study": "Study", "comparison": "Comparison"}


def render(subject: Subject) -> tuple[str, list[Picture]]:
    """Return the page of what the folders hold now, and its pictures."""
    drawn = _draw(subject)
    sections = [
        headline(subject.name, KIND[subject.kind], _facts(subject)),
        results.verdicts(subject),
        part("section", "Results", results.final_values(subject)),
        results.card_table(subject),
        results.difference_table(subject),
        results.rank_table(subject),
        section("Curves", drawn.curves),
        section("Clients", drawn.clients, after=results.client_table(subject) if any(drawn.clients) else ""),
        section("Clusters", drawn.clusters),
        section("Who holds what", drawn.splits, after=drawn.missing),
        section("Simulated time", drawn.time),
        part("section", "Bytes and time", joined([results.cost_table(subject), figures(drawn.cost)])),
        _notes(subject),
        part("section", "Repeat it", _repeat(subject)),
        part("section", "Settings and versions", _settings(subject)),
        part("section", "What the numbers mean", _meanings(subject)),
    ]
    return document(f"{subject.name} · rayfed", sections), drawn.all()


def pictures(subject: Subject) -> list[Picture]:
    """Return the pictures of the page alone."""
    return _draw(subject).all()


class _Drawn(NamedTuple):
    """The pictures of a page by section, None for one that there is not; missing: a paragraph per split that is left out."""

    curves: list[Picture | None]
    clients: list[Picture | None]
    clusters: list[Picture | None]
    splits: list[Picture]
    missing: str
    time: list[Picture | None]
    cost: list[Picture | None]

    def all(self) -> list[Picture]:
        """Return all there are, in the page's order."""
        return [p for p in (*self.curves, *self.clients, *self.clusters, *self.splits, *self.time, *self.cost) if p]


def _draw(subject: Subject) -> _Drawn:
    return _Drawn(
        [*curves.scope_curves(subject), curves.other_metrics(subject), curves.backdoor(subject)],
        [client_pictures.distribution(subject)],
        [curves.clusters(subject), client_pictures.membership(subject)],
        *_splits(subject),
        [time_pictures.gantt(subject), time_pictures.staleness(subject)],
        [curves.by_expense(subject), curves.cost(subject)],
    )


def _facts(subject: Subject) -> dict[str, str]:
    """Return the facts under the title; of several runs every different value."""
    runs = subject.runs
    facts: list[tuple[str, list[str]]] = []
    if subject.kind == "run":
        (run,) = runs
        reached = max((r["round"] for r in run.rows), default=0)
        facts += [("method", [method_name(run.config)]), ("seed", [str(run.seed)]), ("status", [run.status])]
        facts.append(("fell apart", [f"in round {run.collapsed}"] if run.collapsed is not None else []))
        facts.append(("rounds", [f"{reached} of {run.config.get('rounds', '?')}"]))
        if run.summary.get("wall_s") is not None:
            facts.append(("wall time", [duration(float(run.summary["wall_s"]))]))
    else:
        done = sum(len(found) for found in subject.done.values())
        facts += [("arms", list(subject.arms)), ("seeds", [str(s) for s in sorted({r.seed for r in runs})])]
        facts.append(("runs done", [f"{done} of {subject.planned_runs}"]))
        fell = [run for run in runs if run.collapsed is not None]
        facts.append(("fell apart", [f"{r.arm} seed {r.seed} in round {r.collapsed}" for r in fell]))
    for name, key in (("task", "data"), ("task", "model"), ("federation", "clients"), ("federation", "partition")):
        sections = [run.config.get(name) for run in runs]
        facts.append((key, [_name(s[key]) for s in sections if isinstance(s, Mapping) and s.get(key)]))
    return {name: ", ".join(dict.fromkeys(values)) for name, values in facts if values}


def _name(value: Any) -> str:
    return (
        str(value.get("name") or value.get("kind") or " + ".join(value)) if isinstance(value, Mapping) else str(value)
    )


def _splits(subject: Subject) -> tuple[list[Picture], str]:
    """Return a picture of every different split (of each arm's first seed), and a paragraph per split that is left out."""
    arms: dict[str, list[str]] = {}
    first: dict[str, RunRecord] = {}
    for arm, runs in subject.arms.items():
        for run in runs[:1]:
            arms.setdefault(run.split_key, []).append(arm)
            first.setdefault(run.split_key, run)
    pictures: list[Picture] = []
    reasons: dict[str, None] = {}
    for i, (key, run) in enumerate(list(first.items())[:MAX_SPLITS]):
        about = "" if subject.kind == "run" else f", seed {run.seed}"
        about += f": {', '.join(arms[key])}" if len(first) > 1 else ""
        picture = split_picture(run, "partition" if i == 0 else f"partition-{i + 1}", about)
        if isinstance(picture, str):
            reasons[picture] = None
        else:
            pictures.append(picture)
    notes = [f"No picture of who holds what: {reason}." for reason in reasons]
    if len(first) > MAX_SPLITS:
        notes.append(f"{len(first) - MAX_SPLITS} more splits are not drawn.")
    return pictures, joined(part("paragraph", note, "caption") for note in notes)


# -- notes, and how to repeat it ---------------------------------------------------------------------------------------


def _notes(subject: Subject) -> str:
    """Return the runs' notes, each with the arms that have it unless all do."""
    arms_of: dict[str, dict[str, None]] = {}
    for arm, runs in subject.arms.items():
        for run in runs:
            for note in run.notes:
                arms_of.setdefault(note, {})[arm] = None
    if not arms_of:
        return ""
    lines = [note if len(arms) == len(subject.arms) else f"{', '.join(arms)}: {note}" for note, arms in arms_of.items()]
    shown, rest = lines[:MAX_NOTES], lines[MAX_NOTES:]
    more = part("details", f"{len(rest)} more", part("items", rest)) if rest else ""
    return part("section", "Notes", joined([part("items", shown), more]))


def _repeat(subject: Subject) -> str:
    """Return the commands that repeat the runs and write the page again."""
    commands = []
    for source in subject.sources:
        file = source / ("study.yaml" if (source / "study.yaml").is_file() else "config.yaml")
        command = ["rayfed", "run", shlex.quote(path_text(file))]
        run = next((r for r in subject.runs if r.path == source), None)
        commands.append(" ".join([*command, run.repeat_options] if run and run.repeat_options else command))
    if subject.kind == "comparison":
        commands.append(" ".join(["rayfed", "report", *(shlex.quote(path_text(p)) for p in subject.sources)]))
    return part("code", "\n".join(commands), "command")


def _settings(subject: Subject) -> str:
    """Return versions, the settings in which arms differ, and the config files."""
    first = {arm: runs[0] for arm, runs in subject.arms.items() if runs}
    out = [part("paragraph", _versions(subject))]
    if rows := differing([run.config for run in first.values()]):
        body = [[name, *map(_setting_cell, values)] for name, values in rows.items()]
        about = "Settings that differ between the arms; seeds, names, storage and resources are left out."
        out.append(table(["setting", *(results.arm_name(subject, a) for a in first)], body, about, kind="settings"))
    if subject.kind == "comparison":
        files = [(f"{arm}: config.yaml", run.config) for arm, run in first.items()]
    elif subject.kind == "study":
        files = [("study.yaml", subject.study or {})]
    else:
        files = [("config.yaml", subject.runs[0].config)]
    for name, content in files:
        out.append(part("details", name, part("code", yaml_bytes(content).decode())))
    return joined(out)


def _setting_cell(value: str | None) -> str:
    if value is None:
        return "–"
    return value if len(value) <= MAX_VALUE else f"{value[: MAX_VALUE - 1]}…"


def _versions(subject: Subject) -> str:
    """Return the versions that the runs were made with, several where they differ."""
    found: dict[str, dict[str, None]] = {}
    for run in subject.runs:
        for package, version in (run.summary.get("versions") or {}).items():
            found.setdefault(package, {})[str(version)] = None
    note = "" if found else " (of this report; nothing has ended yet)"
    found = found or {package: {version: None} for package, version in versions().items()}
    return joined([part("versions", {k: " / ".join(v) for k, v in found.items()}), note])


def _meanings(subject: Subject) -> str:
    """Return a table of what each metric means."""
    body, logs = [], _logs(subject)
    for metric in subject.metrics:
        about = meaning(metric, logs, subject.measures)
        cells = (metric, about.text, about.unit, about.over) if about else (metric, "the method's own", "", "")
        body.append(cells)
    meanings = table(["metric", "what", "unit", "averaged over"], body, kind="about")
    return part("details", "Metrics, units, averages", meanings)


def _logs(subject: Subject) -> dict[str, tuple[str, str]]:
    """Return what the methods of the runs say of the names that they log; nothing of a method that no longer exists."""
    found: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(method_name(run.config) for run in subject.runs):
        with contextlib.suppress(ConfigError):
            found |= methods.get(name).logs
    return found
