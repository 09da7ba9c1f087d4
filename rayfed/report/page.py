"""The HTML page of a run or a study: no scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rayfed.files import now, yaml_bytes
from rayfed.folder import versions
from rayfed.metrics import lower_is_better, meaning, outcome
from rayfed.report import plots
from rayfed.report.data import Run, Subject, mean_sd
from rayfed.report.look import CSS
from rayfed.report.study import summarise
from rayfed.runs import method_name


def render(subject: Subject) -> tuple[str, dict[str, bytes]]:
    """(the page, {name: PNG}) of what the folder holds by now."""
    pictures = plots.curves(subject)
    clients, found, cost = plots.per_client(subject), plots.clusters(subject), plots.cost(subject)
    sections = [
        _head(subject),
        _verdict(subject),
        "<h2>Results</h2>" + _results(subject),
        "<h2>Curves</h2>" + _figures(pictures) if pictures else "",
        "<h2>Clients</h2>" + _figures([clients]) + _client_table(subject) if clients else "",
        "<h2>Clusters</h2>" + _figures([found]) if found else "",
        "<h2>Bytes and time</h2>" + _cost_table(subject) + _figures([cost] if cost else []),
        _notes(subject),
        "<h2>Repeat it</h2>" + _repeat(subject),
        "<h2>Settings</h2>" + _settings(subject),
        "<h2>What the numbers mean</h2>" + _meanings(subject),
    ]
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(subject.name)} · rayfed</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )
    shown = [*pictures, *(p for p in (clients, found, cost) if p)]
    return html, {p.name: p.png for p in shown}


def number(value: float | None, metric: str = "") -> str:
    """A number for a reader: four digits that matter."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and metric in ("round", "clusters/count", "clients/visits", "clients/dropped"):
        return f"{int(value):,}"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def size(n: float | None) -> str:
    """Bytes for a reader."""
    if n is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} B" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(s: float | None) -> str:
    """Seconds for a reader."""
    if s is None:
        return "–"
    if s < 120:
        return f"{s:.1f} s"
    return f"{s / 60:.1f} min" if s < 7200 else f"{s / 3600:.1f} h"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f"<th>{c}</th>" for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in line) + "</tr>" for line in body)
    below = f"<caption>{caption}</caption>" if caption else ""
    whole = f"{below}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{whole}</table></div>'


def _figures(pictures: Sequence[plots.Picture]) -> str:
    return "".join(f"<figure><figcaption>{escape(p.title)}</figcaption>{p.svg}</figure>" for p in pictures)


def _arm(subject: Subject, arm: str) -> str:
    if len(subject.arms) == 1:
        return escape(arm)
    colour = plots.style(list(subject.arms).index(arm))["color"]
    return f'<span class="dot" style="background:{colour}"></span>{escape(arm)}'


def _head(subject: Subject) -> str:
    runs = subject.all
    facts: list[tuple[str, str]] = []
    if subject.study is None:
        (run,) = runs
        facts += [("method", method_name(run.config)), ("seed", str(run.seed)), ("status", run.status)]
        facts += [("rounds", f"{max((r['round'] for r in run.rows), default=0)} of {run.config.get('rounds', '?')}")]
        if run.summary.get("wall_s") is not None:
            facts.append(("wall time", duration(float(run.summary["wall_s"]))))
    else:
        done = sum(len(found) for found in subject.ended.values())
        facts += [
            ("arms", ", ".join(subject.arms)),
            ("seeds", ", ".join(str(s) for s in sorted({r.seed for r in runs}))),
        ]
        facts += [("runs done", f"{done} of {subject.planned}")]
    first: Mapping[str, Any] = runs[0].config if runs else {}
    task = first.get("task")
    if isinstance(task, Mapping):
        facts += [(k, _name(task[k])) for k in ("data", "model") if task.get(k)]
    federation = first.get("federation")
    if isinstance(federation, Mapping) and federation.get("clients"):
        facts.append(("clients", str(federation["clients"])))
    items = "".join(f'<li><span class="soft">{escape(k)}</span> <b>{escape(v)}</b></li>' for k, v in facts)
    kind = "Run" if subject.study is None else "Study"
    when = now()[:16].replace("T", " ")
    title = f'<h1>{escape(subject.name)}</h1><p class="soft">{kind} · report of {when} UTC</p>'
    return f'{title}<ul class="facts">{items}</ul>'


def _name(value: Any) -> str:
    return str(value.get("name")) if isinstance(value, Mapping) else str(value)


def _verdict(subject: Subject) -> str:
    claim = summarise(subject)["claim"]
    if not claim:
        return ""
    at = f"at round {claim['at']}" if claim["at"] is not None else "at the end"
    better, than, metric = (escape(str(claim[k])) for k in ("better", "than", "metric"))
    text = f"<b>Claim:</b> {better} beats {than} in {metric} {at}"
    text += f" by more than {number(claim['margin'])}" if claim["margin"] else ""
    if claim["verdict"] is None:
        text += f" — <b>no verdict yet</b>: it needs two seeds or more with both values; {claim['n']} found."
        return f'<p class="verdict">{text}</p>'
    low, high = claim["ci95"]
    kind = {"holds": "holds", "does not hold here": "not"}.get(claim["verdict"], "")
    text += f" — <b>{claim['verdict']}</b>. Mean improvement {number(claim['mean_difference'])}, "
    text += f"95 % interval {number(low)} to {number(high)}, {claim['n']} seeds, paired."
    return f'<p class="verdict {kind}">{text}</p>'


def _results(subject: Subject) -> str:
    if subject.study is None:
        return _run_results(subject.all[0])
    shown = [
        m
        for m in subject.metrics
        if meaning(m) is None or m.split("/")[0] in (*subject.scoped(), "clusters", "privacy")
    ]
    shown = [m for m in shown if not m.endswith("_ex")]
    arms, ended = summarise(subject)["arms"], subject.ended
    best = {}
    for m in shown:
        means = {arm: v[m]["mean"] for arm, v in arms.items() if m in v}
        if len(means) > 1 and m.partition("/")[0] in subject.scoped():
            best[m] = (min if lower_is_better(m) else max)(means, key=lambda a: means[a])
    body = []
    for m in shown:
        line = [escape(m)]
        for arm, values in arms.items():
            v = values.get(m)
            if v is None:
                line.append("–")
                continue
            sd = "" if v["sd"] is None else f' <span class="sd">± {number(v["sd"], m)}</span>'
            few = f' <span class="sd">n={v["n"]}</span>' if v["n"] != len(ended[arm]) else ""
            line.append(f'<span class="{"best" if best.get(m) == arm else ""}">{number(v["mean"], m)}</span>{sd}{few}')
        body.append(line)
    body.append(
        ['<span class="soft">seeds</span>', *(f'<span class="soft">n={len(ended[arm])}</span>' for arm in arms)]
    )
    left = subject.planned - sum(len(r) for r in ended.values())
    more = f" {left} of {subject.planned} runs are not done and do not count." if left else ""
    return _table(
        ["final value", *(_arm(subject, a) for a in arms)],
        body,
        f"Mean over seeds ± standard deviation over seeds; best mean in bold.{more}",
    )


def _run_results(run: Run) -> str:
    found = outcome(run.rows)
    names = Subject(run.path, "", None, {run.arm: [run]}, 1).metrics
    shown = [m for m in names if not m.startswith(("time/", "bytes/", "ray/"))]

    def table(metrics: list[str]) -> str:
        body = [
            [escape(m), number(found[m]["final"], m), number(found[m]["best"], m), str(found[m]["best_round"] or "–")]
            for m in metrics
        ]
        return _table(["metric", "final", "best", "in round"], body)

    if not shown:
        return "<p>No round has been written yet.</p>"
    pooled = [m for m in shown if m.endswith("_ex")]
    more = f"<details><summary>Means over examples</summary>{table(pooled)}</details>" if pooled else ""
    return table([m for m in shown if not m.endswith("_ex")]) + more


def _client_table(subject: Subject) -> str:
    import numpy as np

    metric = plots.client_metric(subject) or "accuracy"
    body = []
    for arm, runs in subject.arms.items():
        values = [
            row[metric] for run in runs for row in run.clients if row.get(metric) is not None and not row.get("unseen")
        ]
        if values:
            low, q10, q50, q90, high = np.percentile(values, [0, 10, 50, 90, 100])
            rounds = sorted({run.clients[0]["round"] for run in runs if run.clients})
            when = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}–{rounds[-1]}"
            body.append(
                [
                    _arm(subject, arm),
                    *(number(float(x)) for x in (low, q10, q50, q90, high)),
                    f"{len(values):,}",
                    when,
                ]
            )
    about = f"{metric} of clients that take part, each on its own test split" + (
        ", all seeds together." if subject.study else "."
    )
    return _table(["", "least", "10 %", "median", "90 %", "greatest", "clients", "round"], body, about)


def _cost_table(subject: Subject) -> str:
    body = []
    for arm, runs in subject.arms.items():
        if any(run.rows for run in runs):
            total = {
                m: mean_sd([sum(v for _, v in run.series(m)) for run in runs])[0]
                for m in ("bytes/up", "bytes/down", "ray/bytes")
            }
            per = mean_sd([v for run in runs for _, v in run.series("time/round")])[0]
            wall = mean_sd([float(run.summary["wall_s"]) for run in runs if run.summary.get("wall_s") is not None])[0]
            body.append([_arm(subject, arm), *(size(total[m]) for m in total), duration(per), duration(wall)])
    about = (
        "Per run"
        + (", mean over seeds." if subject.study else ".")
        + " Up and down: what a deployment would send; moved here: between the processes of this run."
    )
    return _table(["", "up", "down", "moved here", "per round", "wall time"], body, about)


def _notes(subject: Subject) -> str:
    said: dict[str, dict[str, None]] = {}
    for run in subject.all:
        for note in run.summary.get("notes") or []:
            said.setdefault(str(note), {})[run.arm] = None
    lines = [note if len(arms) == len(subject.arms) else f"{', '.join(arms)}: {note}" for note, arms in said.items()]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def _repeat(subject: Subject) -> str:
    file = subject.path / ("config.yaml" if subject.study is None else "study.yaml")
    here = Path.cwd()
    if file.is_absolute() and file.is_relative_to(here):
        file = file.relative_to(here)
    return f"<pre><code>rayfed run {escape(shlex.quote(str(file)))}</code></pre>"


def _settings(subject: Subject) -> str:
    whole = subject.all[0].config if subject.study is None else subject.study
    made_with = (
        next((run.summary["versions"] for run in subject.all if run.summary.get("versions")), None) or versions()
    )
    text = yaml_bytes(whole).decode()
    packages = " · ".join(f"{escape(k)} <b>{escape(str(v))}</b>" for k, v in made_with.items())
    name = "config.yaml" if subject.study is None else "study.yaml"
    return f"<p>{packages}</p><details><summary>{name}</summary><pre><code>{escape(text)}</code></pre></details>"


def _meanings(subject: Subject) -> str:
    body = []
    for metric in subject.metrics:
        about = meaning(metric)
        body.append(
            [
                escape(c)
                for c in (
                    (metric, about.text, about.unit, about.over) if about else (metric, "the method's own", "", "")
                )
            ]
        )
    return (
        "<details><summary>Metrics, units, averages</summary>"
        + _table(["metric", "what", "unit", "averaged over"], body, kind="about")
        + "</details>"
    )
