"""The HTML page of a run, a study or a comparison: no scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import math
import shlex
from collections import ChainMap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rayfed import methods
from rayfed.metrics import lower_is_better, meaning, outcome
from rayfed.report import plots
from rayfed.report.data import Run, Subject, differing, mean_sd, worst_decile
from rayfed.report.plots import Picture
from rayfed.report.study import differences, summarise
from rayfed.report.style import CSS
from rayfed.storage.atomic import now, yaml_bytes
from rayfed.storage.listing import method_name
from rayfed.storage.run_folder import versions

MOST_SPLITS = 3  # different splits drawn on one page
MOST_NOTES = 12
WHOLE = ("round", "clusters/count", "clients/visits", "clients/dropped", "actors/restarts")  # counts
KIND = {"run": "Run", "study": "Study", "comparison": "Comparison"}


def render(subject: Subject) -> tuple[str, list[Picture]]:
    """(the page, its pictures) of what the folders hold by now."""
    curves = plots.curves(subject)
    others, clients, worth, cost = (draw(subject) for draw in (plots.others, plots.per_client, plots.worth, plots.cost))
    found = [p for p in (plots.clusters(subject), plots.membership(subject)) if p]
    held, why_not = _splits(subject)
    sections = [
        _head(subject),
        _verdicts(subject),
        "<h2>Results</h2>" + _results(subject),
        _differences(subject),
        _part("Curves", [*curves, others]),
        _part("Clients", [clients], after=_client_table(subject) if clients else ""),
        _part("Clusters", found),
        _part("Who holds what", held, after=why_not),
        "<h2>Bytes and time</h2>" + _cost_table(subject) + _figures([worth, cost]),
        _notes(subject),
        "<h2>Repeat it</h2>" + _repeat(subject),
        "<h2>Settings and versions</h2>" + _settings(subject),
        "<h2>What the numbers mean</h2>" + _meanings(subject),
    ]
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(subject.name)} · rayfed</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main></body></html>\n"
    )
    return html, [p for p in (*curves, others, clients, *found, *held, worth, cost) if p]


# -- text --------------------------------------------------------------------------------------------------------------


def number(value: float | None, metric: str = "", sign: bool = False) -> str:
    """A number for a reader: four digits that matter."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    plus = "+" if sign else ""
    if float(value).is_integer() and metric in WHOLE:
        text = f"{int(value):{plus},}"
    elif value and (abs(value) >= 1e6 or abs(value) < 1e-4):
        text = f"{value:{plus}.3e}"
    else:
        text = f"{value:{plus}.4f}" if abs(value) < 10 else f"{value:{plus},.1f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


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
        return f"{s:.2g} s" if s < 1 else f"{s:.1f} s"
    return f"{s / 60:.1f} min" if s < 7200 else f"{s / 3600:.1f} h"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """Cells are HTML already."""
    top = "".join(f'<th scope="col">{c}</th>' for c in head)
    lines = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in line) + "</tr>" for line in body)
    whole = f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="wide">{whole}</div>' + (f'<p class="caption">{caption}</p>' if caption else "")


def _part(title: str, pictures: Sequence[Picture | None], after: str = "") -> str:
    """A section, or nothing if it would be empty."""
    shown = _figures(pictures)
    return f"<h2>{title}</h2>{shown}{after}" if shown or after else ""


def _figures(pictures: Sequence[Picture | None]) -> str:
    return "".join(_figure(p) for p in pictures if p)


def _figure(picture: Picture) -> str:
    key = "".join(f"<li>{_swatch(look)}{escape(label)}</li>" for label, look in picture.key.items())
    drawn = "".join(f"<div>{svg}</div>" for svg in picture.svgs())
    kind = "whole" if picture.wide else f"of{picture.columns}"
    return (
        f"<figure><figcaption>{escape(picture.title)}</figcaption>"
        + (f'<ul class="key">{key}</ul>' if key else "")
        + f'<div class="panels {kind}">{drawn}</div>'
        + (f'<p class="caption">{escape(picture.note)}</p>' if picture.note else "")
        + "</figure>"
    )


def _swatch(look: plots.Look) -> str:
    if look.get("block"):
        return f'<i class="block" style="background:{look["color"]};opacity:{look.get("alpha", 1):.2f}"></i>'
    dash = ("solid", "dashed", "dotted")[plots.LINES.index(look.get("linestyle", "-"))]
    colour = "currentColor" if look["color"] == plots.INK else look["color"]
    return f'<i class="line" style="border-top-style:{dash};border-top-color:{colour}"></i>'


def _arm(subject: Subject, arm: str) -> str:
    if len(subject.arms) == 1:
        return escape(arm)
    return f"{_swatch(plots.style(list(subject.arms).index(arm)))}{escape(arm)}"


def _shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _name(value: Any) -> str:
    return str(value.get("name") or value.get("kind")) if isinstance(value, Mapping) else str(value)


# -- what it is and what came out --------------------------------------------------------------------------------------


def _head(subject: Subject) -> str:
    runs = subject.all
    facts: list[tuple[str, list[str]]] = []
    if subject.kind == "run":
        (run,) = runs
        facts += [("method", [method_name(run.config)]), ("seed", [str(run.seed)]), ("status", [run.status])]
        reached = max((r["round"] for r in run.rows), default=0)
        facts += [("rounds", [f"{reached} of {run.config.get('rounds', '?')}"])]
        if run.summary.get("wall_s") is not None:
            facts.append(("wall time", [duration(float(run.summary["wall_s"]))]))
    else:
        done = sum(len(found) for found in subject.ended.values())
        facts += [("arms", list(subject.arms)), ("seeds", [str(s) for s in sorted({r.seed for r in runs})])]
        facts += [("runs done", [f"{done} of {subject.planned}"])]
    for section, key in (("task", "data"), ("task", "model"), ("federation", "clients"), ("federation", "partition")):
        found = [run.config.get(section) for run in runs]
        facts.append((key, [_name(f[key]) for f in found if isinstance(f, Mapping) and f.get(key)]))
    items = "".join(
        f'<li><span class="soft">{escape(k)}</span> <b>{escape(", ".join(dict.fromkeys(v)))}</b></li>'
        for k, v in facts
        if v
    )
    when = now()[:16].replace("T", " ")
    title = f'<h1>{escape(subject.name)}</h1><p class="soft">{KIND[subject.kind]} · report of {when} UTC</p>'
    return f'{title}<ul class="facts">{items}</ul>'


def _verdicts(subject: Subject) -> str:
    said = (subject.study or {}).get("claim")
    about = [str(c.get("about") or "") for c in (said if isinstance(said, list) else [said] if said else [])]
    judged = summarise(subject)["claim"] or []
    judged = judged if isinstance(judged, list) else [judged]
    return "".join(_verdict(c, text) for c, text in zip(judged, about, strict=True))


def _verdict(claim: Mapping[str, Any], about: str) -> str:
    better, than, metric = (escape(str(claim[k])) for k in ("better", "than", "metric"))
    at, margin = f"at round {claim['at']}" if claim["at"] is not None else "at the end", claim["margin"]
    if margin < 0:
        text = f"in {metric} {at}, {better} is worse than {than} by at most {number(-margin)}"
    else:
        text = f"{better} beats {than} in {metric} {at}" + (f" by more than {number(margin)}" if margin else "")
    text = f"<b>Claim:</b> {text}"
    if claim["ci95"] is None:
        few = claim["n"] < 2
        why = f"it needs two seeds or more with both values; {claim['n']} found" if few else "a value is not finite"
        text += f" — <b>{escape(claim['verdict'])}</b>: {why}."
    else:
        low, high = claim["ci95"]
        text += (
            f" — <b>{escape(claim['verdict'])}</b>. Mean improvement {number(claim['mean_difference'], sign=True)}, "
            f"95 % interval {number(low, sign=True)} to {number(high, sign=True)}, {claim['n']} seeds, paired."
        )
    if about:
        text = f"<em>{escape(about)}</em><br>{text}"
    kind = {"holds": "holds", "does not hold here": "not"}.get(claim["verdict"], "open")
    return f'<p class="verdict {kind}">{text}</p>'


def _results(subject: Subject) -> str:
    if subject.kind == "run":
        return _run_results(subject)
    arms, ended = summarise(subject)["arms"], subject.ended
    body = []
    for m in subject.telling():
        means = {arm: v[m]["mean"] for arm, v in arms.items() if m in v}
        best = None
        if len(means) > 1 and _directed(subject, m):
            best = (min if lower_is_better(m) else max)(means, key=lambda a: means[a])
        line = [escape(m)]
        for arm, values in arms.items():
            if (v := values.get(m)) is None:
                line.append("–")
                continue
            mean = number(v["mean"], m)
            few = f' <span class="sd">n={v["n"]}</span>' if v["n"] != len(ended[arm]) else ""
            line.append((f"<b>{mean}</b>" if best == arm else mean) + _spread(v["sd"], m) + few)
        body.append(line)
    counts = [f'<span class="soft">{len(ended[arm])}</span>' for arm in arms]
    body.append(['<span class="soft">seeds</span>', *counts])
    left = subject.planned - sum(len(r) for r in ended.values())
    more = f" {left} of {subject.planned} runs are not done and do not count." if left else ""
    about = f"Mean over seeds ± standard deviation over seeds; best mean in bold.{more}"
    return _table(["final value", *(_arm(subject, a) for a in arms)], body, about)


def _spread(sd: float | None, metric: str = "") -> str:
    return "" if sd is None else f' <span class="sd">± {number(sd, metric)}</span>'


def _directed(subject: Subject, metric: str) -> bool:
    """Whether more or less of a metric is plainly better."""
    return metric.partition("/")[0] in subject.scoped() or metric == "clusters/ari"


def _run_results(subject: Subject) -> str:
    (run,) = subject.all
    found = outcome(run.rows)
    shown = [m for m in subject.metrics if not m.startswith(("time/", "bytes/", "ray/", "clients/", "actors/"))]

    def table(metrics: Sequence[str]) -> str:
        body = [
            [escape(m), number(found[m]["final"], m), number(found[m]["best"], m), str(found[m]["best_round"] or "–")]
            if _directed(subject, m.removesuffix("_ex"))
            else [escape(m), number(found[m]["final"], m), "", ""]
            for m in metrics
        ]
        return _table(["metric", "final", "best", "in round"], body)

    if not run.rows:
        return "<p>No round has been written yet.</p>"
    if not shown:
        return "<p>No round has been evaluated yet.</p>"
    pooled = [m for m in shown if m.endswith("_ex")]
    more = f"<details><summary>Means over examples</summary>{table(pooled)}</details>" if pooled else ""
    return table([m for m in shown if not m.endswith("_ex")]) + more


def _differences(subject: Subject) -> str:
    """Each arm against the first, paired by seed."""
    if len(subject.arms) < 2:
        return ""
    reference, *others = subject.arms
    found = differences(subject)
    metrics = [m for m in subject.telling() if any(m in values for values in found.values())]
    alone = [arm for arm in others if arm not in found]
    why = ""
    if alone:
        names = ", ".join(escape(a) for a in alone)
        why = f"{names}: nothing to compare: no seed that is done on the same split in both."
    head = f"<h2>Difference from {escape(reference)}</h2>"
    if not metrics:
        return f"{head}<p>{why}</p>"
    body = []
    for m in metrics:
        line = [escape(m)]
        for arm in found:
            v = found[arm].get(m)
            line.append("–" if v is None else _difference(v, m, _directed(subject, m)))
        body.append(line)
    counts = [str(max(v["n"] for v in values.values())) for values in found.values()]
    body.append(['<span class="soft">seeds in common</span>', *(f'<span class="soft">{n}</span>' for n in counts)])
    about = (
        f"Final value less that of {escape(reference)}, mean over the seeds that both have on the same split, with the "
        "paired 95 % interval from two seeds on. ▲ better, ▼ worse: the interval leaves out zero."
    )
    return head + _table(["", *(_arm(subject, a) for a in found)], body, f"{about} {why}".strip())


def _difference(v: Mapping[str, Any], metric: str, directed: bool) -> str:
    sign = -1.0 if lower_is_better(metric) else 1.0
    if v["mean_difference"] is None:
        return "–"
    text = number(sign * v["mean_difference"], metric, sign=True)
    if v["ci95"] is None:
        return text
    low, high = sorted(sign * x for x in v["ci95"])
    if directed and v["ci95"][0] > 0:
        text = f'<b class="good">▲ {text}</b>'
    elif directed and v["ci95"][1] < 0:
        text = f'<b class="bad">▼ {text}</b>'
    return f'{text} <span class="sd">{number(low, sign=True)} to {number(high, sign=True)}</span>'


# -- clients, splits, cost ---------------------------------------------------------------------------------------------


def _client_table(subject: Subject) -> str:
    import numpy as np

    metric = plots.client_metric(subject) or "accuracy"
    body = []
    for arm, runs in subject.arms.items():
        each = [v for run in runs if (v := plots.client_values(run, metric))]
        if not each:
            continue
        pooled = [x for values in each for x in values]
        worst, sd = mean_sd([worst_decile(values, lower_is_better(metric)) for values in each])
        cells = [number(float(x)) for x in np.percentile(pooled, [0, 10, 50, 90, 100])]
        rounds = sorted({run.clients[0]["round"] for run in runs if run.clients})
        when = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}–{rounds[-1]}"
        body.append([_arm(subject, arm), number(worst) + _spread(sd), *cells, f"{len(pooled):,}", when])
    about = f"{escape(metric)} of clients that take part, each on its own test split. Worst tenth: their mean"
    if any(len(runs) > 1 for runs in subject.arms.values()):
        about += ", over seeds ± standard deviation; the other columns take all seeds together"
    head = ["", "worst tenth", "least", "10 %", "median", "90 %", "greatest", "clients", "round"]
    return _table(head, body, f"{about}.")


def _splits(subject: Subject) -> tuple[list[Picture], str]:
    """A picture of every different split (of each arm's first seed), and what is to be said of those that are left out."""
    arms: dict[str, list[str]] = {}
    first: dict[str, Run] = {}
    for arm, runs in subject.arms.items():
        for run in runs[:1]:
            arms.setdefault(run.split, []).append(arm)
            first.setdefault(run.split, run)
    pictures: list[Picture] = []
    reasons: dict[str, None] = {}
    for i, (split, run) in enumerate(list(first.items())[:MOST_SPLITS]):
        about = "" if subject.kind == "run" else f", seed {run.seed}"
        about += f": {', '.join(arms[split])}" if len(first) > 1 else ""
        made = plots.partition(run, "partition" if i == 0 else f"partition-{i + 1}", about)
        if isinstance(made, str):
            reasons[made] = None
        else:
            pictures.append(made)
    said = [f"No picture of who holds what: {reason}." for reason in reasons]
    if len(first) > MOST_SPLITS:
        said.append(f"{len(first) - MOST_SPLITS} more splits are not drawn.")
    return pictures, "".join(f'<p class="caption">{escape(s)}</p>' for s in said)


def _cost_table(subject: Subject) -> str:
    body = []
    sent: dict[str, float] = {}
    several = len(subject.arms) > 1
    for arm, runs in subject.arms.items():
        runs = [run for run in runs if run.rows]
        if not runs:
            continue
        total = {
            m: mean_sd([math.fsum(v for _, v in run.series(m)) for run in runs if run.series(m)])[0]
            for m in ("bytes/up", "bytes/down", "ray/bytes")
        }
        per = mean_sd([v for run in runs for _, v in run.series("time/round")])[0]
        wall = mean_sd([float(run.summary["wall_s"]) for run in runs if run.summary.get("wall_s") is not None])[0]
        line = [_arm(subject, arm), *(size(total[m]) for m in total), duration(per), duration(wall)]
        if several:
            sent[arm] = (total["bytes/up"] or 0.0) + (total["bytes/down"] or 0.0)
            base = next(iter(sent.values()))
            line.append(f"{sent[arm] / base:.2f} ×" if base else "–")
        body.append(line)
    if not body:
        return "<p>No round has been written yet.</p>"
    about = (
        "Per run"
        + (", mean over seeds." if any(len(runs) > 1 for runs in subject.arms.values()) else ".")
        + " Up and down: what a deployment would send; moved here: between the processes of this run."
    )
    head = ["", "up", "down", "moved here", "per round", "wall time"]
    return _table([*head, "up and down, of the first"] if several else head, body, about)


# -- how to repeat it --------------------------------------------------------------------------------------------------


def _notes(subject: Subject) -> str:
    said: dict[str, dict[str, None]] = {}
    for run in subject.all:
        for note in run.summary.get("notes") or []:
            if not str(note).startswith("to repeat: "):
                said.setdefault(str(note), {})[run.arm if subject.kind != "comparison" else _arm_of(subject, run)] = (
                    None
                )
    lines = [note if len(arms) == len(subject.arms) else f"{', '.join(arms)}: {note}" for note, arms in said.items()]
    items = [f"<li>{escape(line)}</li>" for line in lines]
    more = f"<details><summary>{len(items) - MOST_NOTES} more</summary><ul>{''.join(items[MOST_NOTES:])}</ul></details>"
    shown = f"<ul>{''.join(items[:MOST_NOTES])}</ul>" + (more if len(items) > MOST_NOTES else "")
    return f"<h2>Notes</h2>{shown}" if items else ""


def _arm_of(subject: Subject, run: Run) -> str:
    return next(arm for arm, runs in subject.arms.items() if any(r is run for r in runs))


def _repeat(subject: Subject) -> str:
    commands = []
    for source in subject.sources:
        study = (source / "study.yaml").is_file()
        parts = ["rayfed", "run", shlex.quote(_shown(source / ("study.yaml" if study else "config.yaml")))]
        run = next((r for r in subject.all if r.path == source), None)
        commands.append(" ".join([*parts, run.repeat] if run and run.repeat else parts))
    if subject.kind == "comparison":
        commands.append(" ".join(["rayfed", "report", *(shlex.quote(_shown(p)) for p in subject.sources)]))
    text = "\n".join(commands)
    return f'<pre class="command"><code>{escape(text)}</code></pre>'


def _settings(subject: Subject) -> str:
    out = [f"<p>{_versions(subject)}</p>"]
    table = differing(subject)
    if table:
        begun = [arm for arm, runs in subject.arms.items() if runs]
        body = [
            [escape(k), *("–" if v is None else escape(v if len(v) <= 80 else f"{v[:79]}…") for v in values)]
            for k, values in table.items()
        ]
        about = "Settings that differ between the arms; seeds, names, storage and resources are left out."
        out.append(_table(["setting", *(_arm(subject, a) for a in begun)], body, about, kind="settings"))
    if subject.kind == "comparison":
        files = [(f"{arm}: config.yaml", runs[0].config) for arm, runs in subject.arms.items() if runs]
    elif subject.kind == "study":
        files = [("study.yaml", subject.study or {})]
    else:
        files = [("config.yaml", subject.all[0].config)]
    for name, content in files:
        text = escape(yaml_bytes(content).decode())
        out.append(f"<details><summary>{escape(name)}</summary><pre><code>{text}</code></pre></details>")
    return "".join(out)


def _versions(subject: Subject) -> str:
    """What the runs were made with; several values where they differ."""
    found: dict[str, dict[str, None]] = {}
    for run in subject.all:
        for package, version in (run.summary.get("versions") or {}).items():
            found.setdefault(package, {})[str(version)] = None
    said = "" if found else " (of this report; nothing has ended yet)"
    found = found or {package: {version: None} for package, version in versions().items()}
    return " · ".join(f"{escape(k)} <b>{escape(' / '.join(v))}</b>" for k, v in found.items()) + said


def _meanings(subject: Subject) -> str:
    body, logs = [], ChainMap(*(dict(methods.logs(m)) for m in {method_name(run.config): 0 for run in subject.all}))
    for metric in subject.metrics:
        about = meaning(metric, logs)
        cells = (metric, about.text, about.unit, about.over) if about else (metric, "the method's own", "", "")
        body.append([escape(c) for c in cells])
    table = _table(["metric", "what", "unit", "averaged over"], body, kind="about")
    return f"<details><summary>Metrics, units, averages</summary>{table}</details>"
