"""The numbers of a report page as HTML: verdicts on claims, final values, differences, clients and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rayfed.metrics import lower_is_better, outcome
from rayfed.report import card
from rayfed.report.client_pictures import client_metric, client_values
from rayfed.report.html import duration, joined, number, part, size, spread, swatch, table
from rayfed.report.picture import line_style
from rayfed.report.ranks import lines, note, rank_tests
from rayfed.report.statistics import mean_sd, worst_decile
from rayfed.report.study import differences, summarise
from rayfed.report.subject import RunRecord, Subject
from rayfed.report.tables import caution

COST = ("time/", "bytes/", "ray/", "clients/", "actors/")  # beginnings of metrics that the cost table shows


def arm_name(subject: Subject, arm: str) -> str:
    """Return an arm's name with the sample of its line, where there are several arms."""
    if len(subject.arms) == 1:
        return arm
    return joined([swatch(line_style(list(subject.arms).index(arm))), arm])


def _soft(text: str) -> str:
    return part("soft", text)


def _has_direction(subject: Subject, metric: str) -> bool:
    """Return whether a metric is better when it is higher, or when it is lower."""
    return metric.partition("/")[0] in subject.scopes() or metric == "clusters/ari"


# -- claims ------------------------------------------------------------------------------------------------------------


def verdicts(subject: Subject) -> str:
    """Return a paragraph per claim of a study, with its verdict."""
    claim = (subject.study or {}).get("claim")
    claims = claim if isinstance(claim, list) else [claim] if claim else []
    judged = summarise(subject)["claim"] or []
    judged = judged if isinstance(judged, list) else [judged]
    abouts = [str(c.get("about") or "") for c in claims]
    return joined(_verdict(c, about) for c, about in zip(judged, abouts, strict=True))


def _verdict(claim: Mapping[str, Any], about: str) -> str:
    better, than, metric = (str(claim[k]) for k in ("better", "than", "metric"))
    at, margin = f"at round {claim['at']}" if claim["at"] is not None else "at the end", claim["margin"]
    if margin < 0:
        text = f"in {metric} {at}, {better} is worse than {than} by at most {number(-margin)}"
    else:
        text = f"{better} beats {than} in {metric} {at}" + (f" by more than {number(margin)}" if margin else "")
    more = ""
    if margin and claim["verdict"] != "incomplete":
        shown = {True: "shown", False: "refuted", None: "open"}[claim["holds"]]
        more = f", the margin is {shown}"
    if claim["ci95"] is None:
        few = f"it needs two seeds or more with both values; {claim['n']} found"
        more += f": {few if claim['n'] < 2 else 'a value is not finite'}."
    else:
        low, high = claim["ci95"]
        more += (
            f". Mean improvement {number(claim['mean_difference'], sign=True)}, "
            f"95 % interval {number(low, sign=True)} to {number(high, sign=True)}, {claim['n']} seeds, paired."
        )
    kind = {True: "holds", False: "not", None: "open"}[claim["holds"]]
    return part("verdict", {"text": text, "verdict": claim["verdict"], "more": more}, about, kind)


# -- final values ------------------------------------------------------------------------------------------------------


def final_values(subject: Subject) -> str:
    """Return the table of final values: of a run with its best ones, else each arm's means over seeds."""
    if subject.kind == "run":
        return _run_values(subject)
    arms, done = summarise(subject)["arms"], subject.done
    body = []
    for metric in subject.quality_metrics():
        means = {arm: values[metric]["mean"] for arm, values in arms.items() if metric in values}
        best = None
        if len(means) > 1 and _has_direction(subject, metric):
            best = (min if lower_is_better(metric) else max)(means, key=lambda arm: means[arm])
        cells = [_mean_cell(values.get(metric), metric, arm == best, len(done[arm])) for arm, values in arms.items()]
        body.append([metric, *cells])
    body.append([_soft("seeds"), *(_soft(str(len(done[arm]))) for arm in arms)])
    missing = subject.planned_runs - sum(len(runs) for runs in done.values())
    more = f" {missing} of {subject.planned_runs} runs are not done and do not count." if missing else ""
    few = caution({arm: len(runs) for arm, runs in done.items()})
    about = f"Mean over seeds ± standard deviation over seeds; best mean in bold.{more} {few}".rstrip()
    return table(["final value", *(arm_name(subject, a) for a in arms)], body, about)


def _mean_cell(value: Mapping[str, Any] | None, metric: str, best: bool, seeds: int) -> str:
    """Return mean and standard deviation, and the number of values if it is not the number of seeds."""
    if value is None:
        return "–"
    mean = number(value["mean"], metric)
    few = joined([" ", part("small", f"n={value['n']}")]) if value["n"] != seeds else ""
    return joined([part("bold", mean) if best else mean, spread(value["sd"], metric), few])


def _run_values(subject: Subject) -> str:
    (run,) = subject.runs
    if not run.rows:
        return part("paragraph", "No round has been written yet.")
    shown = [m for m in subject.metrics if not m.startswith(COST)]
    if not shown:
        without = next((note for note in run.notes if note.startswith("no metric")), None)
        return part("paragraph", f"{without or 'No round has been evaluated yet'}.")
    values = outcome(run.rows)

    def line(metric: str) -> list[str]:
        found = values[metric]
        final = [metric, number(found["final"], metric)]
        if not _has_direction(subject, metric.removesuffix("_ex")):
            return [*final, "", ""]
        return [*final, number(found["best"], metric), str(found["best_round"] or "–")]

    head = ["metric", "final", "best", "in round"]
    over_clients = table(head, [line(m) for m in shown if not m.endswith("_ex")])
    over_examples = [line(m) for m in shown if m.endswith("_ex")]
    if not over_examples:
        return over_clients
    return joined([over_clients, part("details", "Means over examples", table(head, over_examples))])


def card_table(subject: Subject) -> str:
    """Return the report card of several arms that were scored on another task too; nothing of others."""
    if len(subject.arms) < 2 or not any(m.endswith("/retained") for m in subject.metrics):
        return ""
    head, *body = card.lines(subject)
    return part("section", "Report card", table(head, body, card.about(subject)))


# -- differences -------------------------------------------------------------------------------------------------------


def difference_table(subject: Subject) -> str:
    """Return each arm's differences from the first one, paired by seed; nothing where there is only one arm."""
    if len(subject.arms) < 2:
        return ""
    reference, *others = subject.arms
    found = differences(subject)
    metrics = [m for m in subject.quality_metrics() if any(m in values for values in found.values())]
    alone = ", ".join(arm for arm in others if arm not in found)
    reason = f"{alone}: nothing to compare: no seed that is done on the same split in both." if alone else ""
    title = f"Difference from {reference}"
    if not metrics:
        return part("section", title, part("paragraph", reason))
    body = []
    for metric in metrics:
        directed = _has_direction(subject, metric)
        cells = [_difference(values.get(metric), metric, directed) for values in found.values()]
        body.append([metric, *cells])
    counts = [str(max(v["n"] for v in values.values())) for values in found.values()]
    body.append([_soft("seeds in common"), *map(_soft, counts)])
    about = (
        f"Final value minus that of {reference}, mean over the seeds that both have on the same split, with the "
        "paired 95 % interval from two seeds on. ▲ better, ▼ worse: the interval leaves out zero."
    )
    made = table(["", *(arm_name(subject, a) for a in found)], body, f"{about} {reason}".strip())
    return part("section", title, made)


def _difference(judged: Mapping[str, Any] | None, metric: str, directed: bool) -> str:
    """Return a difference with its interval; `judged` is in the direction of improvement, the cell is not."""
    if judged is None or judged["mean_difference"] is None:
        return "–"
    sign = -1.0 if lower_is_better(metric) else 1.0
    text = number(sign * judged["mean_difference"], metric, sign=True)
    if judged["ci95"] is None:
        return text
    low, high = sorted(sign * x for x in judged["ci95"])
    if directed and judged["ci95"][0] > 0:
        text = part("bold", f"▲ {text}", "good")
    elif directed and judged["ci95"][1] < 0:
        text = part("bold", f"▼ {text}", "bad")
    return joined([text, " ", part("small", f"{number(low, sign=True)} to {number(high, sign=True)}")])


def rank_table(subject: Subject) -> str:
    """Return the arms' mean ranks and rank tests of each score; nothing where there is nothing to rank."""
    tests = rank_tests(subject)
    if not tests:
        return ""
    arms = list(subject.done)
    head = [
        "mean rank",
        *(arm_name(subject, a) for a in arms),
        "seeds",
        "Friedman p",
        *(f"p, {a}" for a in arms[1:]),
    ]
    return part("section", "Ranks over seeds", table(head, lines(tests, arms), note(tests)))


# -- clients and cost --------------------------------------------------------------------------------------------------


def client_table(subject: Subject) -> str:
    """Return quantiles over the clients of each arm, and their worst tenth."""
    import numpy as np

    metric = client_metric(subject) or "accuracy"
    body = []
    for arm, runs in subject.arms.items():
        each = [values for run in runs if (values := client_values(run, metric))]
        if not each:
            continue
        over_seeds = [x for values in each for x in values]
        worst, sd = mean_sd([worst_decile(values, lower_is_better(metric)) for values in each])
        quantiles = [number(float(x)) for x in np.percentile(over_seeds, [0, 10, 50, 90, 100])]
        rounds = sorted({run.clients[0]["round"] for run in runs if run.clients})
        when = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]}–{rounds[-1]}"
        body.append(
            [arm_name(subject, arm), joined([number(worst), spread(sd)]), *quantiles, f"{len(over_seeds):,}", when]
        )
    about = f"{metric} of clients that take part, each on its own test split. Worst tenth: their mean"
    if any(len(runs) > 1 for runs in subject.arms.values()):
        about += ", over seeds ± standard deviation; the other columns are over the clients of all seeds"
    head = ["", "worst tenth", "least", "10 %", "median", "90 %", "greatest", "clients", "round"]
    return table(head, body, f"{about}.")


def cost_table(subject: Subject) -> str:
    """Return bytes and times of each arm, means over its runs."""
    several = len(subject.arms) > 1
    body = []
    base = None  # bytes of the first arm
    for arm, runs in subject.arms.items():
        runs = [run for run in runs if run.rows]
        if not runs:
            continue
        up, down, moved = (_mean_total(runs, m) for m in ("bytes/up", "bytes/down", "ray/bytes"))
        per_round = mean_sd([v for run in runs for _, v in run.series("time/round")])[0]
        wall = mean_sd([float(run.summary["wall_s"]) for run in runs if run.summary.get("wall_s") is not None])[0]
        line = [arm_name(subject, arm), size(up), size(down), size(moved), duration(per_round), duration(wall)]
        if several:
            sent = (up or 0.0) + (down or 0.0)
            base = sent if base is None else base
            line.append(f"{sent / base:.2f} ×" if base else "–")
        body.append(line)
    if not body:
        return part("paragraph", "No round has been written yet.")
    over_seeds = ", mean over seeds" if any(len(runs) > 1 for runs in subject.arms.values()) else ""
    about = f"Per run{over_seeds}. Up and down: what a deployment would send; moved here: between the processes of this run."
    head = ["", "up", "down", "moved here", "per round", "wall time"]
    return table([*head, "up and down, of the first"] if several else head, body, about)


def _mean_total(runs: Sequence[RunRecord], metric: str) -> float | None:
    """Return the mean over runs of a metric's sum over rounds; None if no run has measured it."""
    return mean_sd([math.fsum(v for _, v in run.series(metric)) for run in runs if run.series(metric)])[0]
