"""A report card of a study's arms: what is trained, sent and done beside what is reached, at the worst clients and on another task too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rayfed.errors import ConfigError, nearest
from rayfed.metrics import lower_is_better
from rayfed.report.client_pictures import client_values
from rayfed.report.html import number, size
from rayfed.report.statistics import mean_sd, worst_decile
from rayfed.report.subject import RunRecord, Subject
from rayfed.storage.saved_config import method_name, section

HEAD = ("arm", "method", "trained", "local work", "sent a round", "sent in all")
SHARES = ("exact", "accuracy")  # of right answers; the first that was measured is shown


def measures(subject: Subject, asked: Sequence[str] = ()) -> list[str]:
    """Return the measures of a card: those asked for, else a share of right answers and the loss, or two that the arms have.
    ConfigError for one that was not measured."""
    known = [*subject.scopes()]
    if wrong := [m for m in asked if m not in known]:
        raise ConfigError(
            [f"--metric: {m!r} was not measured{nearest(m, known)}; there is {', '.join(known)}" for m in wrong]
        )
    usual = [next((m for m in SHARES if m in known), ""), "loss"]
    return list(asked) or [m for m in dict.fromkeys([*usual, *known]) if m in known][:2]


def lines(subject: Subject, asked: Sequence[str] = ()) -> list[list[str]]:
    """Return the card's lines, the head first: of every arm that has ended a run its means over seeds.

    Worst tenth: the mean over the worst tenth of the clients, on their own rows. Retained: the score on another task's rows
    (`evaluate.retained`) and, from the second arm on, what it is more than the first arm's.
    """
    names = measures(subject, asked)
    scopes = [s for s in ("global", "personal", "retained") if any(f"{m}/{s}" in subject.metrics for m in names)]
    columns = [(m, s) for m in names for s in (*scopes[:2], "worst tenth", *scopes[2:])]
    private = "privacy/epsilon" in subject.metrics
    out = [[*HEAD, *(f"{m}, {s}" for m, s in columns), *(["epsilon"] if private else [])]]
    base: dict[str, float] = {}
    for arm, runs in subject.done.items():
        if not runs:
            continue
        sent = [math.fsum(v for m in ("bytes/up", "bytes/down") for _, v in run.series(m)) for run in runs]
        rounds = [len(run.rows) for run in runs]
        cells = [arm, method_name(runs[0].config), _trained(runs[0].summary), _work(runs)]
        cells += [size(_mean([s / r for s, r in zip(sent, rounds, strict=True)])), size(_mean(sent))]
        cells += [_score(runs, m, s, base) for m, s in columns]
        out.append(cells + ([number(_mean(_finals(runs, "privacy/epsilon")))] if private else []))
    return out


def _score(runs: Sequence[RunRecord], measure: str, scope: str, base: dict[str, float]) -> str:
    """Return a score; base: the first arm's on another task, which this notes."""
    if scope == "worst tenth":
        found = [v for run in runs if (v := client_values(run, measure))]
        return number(_mean([worst_decile(v, lower_is_better(measure)) for v in found]))
    metric = f"{measure}/{scope}"
    value = _mean(_finals(runs, metric))
    if scope != "retained" or value is None:
        return number(value)
    if metric not in base:
        base[metric] = value
        return number(value)
    return f"{number(value)} ({number(value - base[metric], sign=True)})"


def _finals(runs: Sequence[RunRecord], metric: str) -> list[float]:
    return [v for run in runs if (v := run.final(metric)) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return mean_sd(values)[0]


def _trained(summary: Mapping[str, Any]) -> str:
    """Return how many parameters are trained, and which share of all that is."""
    known = summary.get("parameters")
    if not known:
        return "–"
    return f"{known['trained']:,} ({known['trained'] / max(1, known['all']):.1%})"


def _work(runs: Sequence[RunRecord]) -> str:
    """Return clients in a round times local work, by the config."""
    local = section(runs[0].config, "local")
    visits = _mean([v for run in runs for _, v in run.series("clients/visits")])
    steps = local.get("steps")
    unit = f"{steps} steps" if steps else f"{local.get('epochs') or 1} epochs"
    return f"{visits or 0:g} × {unit}"


def markdown(subject: Subject, asked: Sequence[str] = ()) -> str:
    """Return the card as a table in Markdown, with what it says and what its arms share."""
    head, *body = lines(subject, asked)
    rows = [_row(head), _row(["---"] * 2 + ["---:"] * (len(head) - 2)), *map(_row, body)]
    return "\n".join([*rows, "", about(subject), ""])


def about(subject: Subject) -> str:
    """Return how a card is to be read, and whether all arms had one split of the data."""
    splits = {arm: {(run.seed, run.split_key) for run in runs} for arm, runs in subject.done.items() if runs}
    usual = Counter(s for found in splits.values() for s in found)
    most = {seed: max((s for s in usual if s[0] == seed), key=usual.__getitem__) for seed, _ in usual}
    others = [arm for arm, found in splits.items() if any(s != most[s[0]] for s in found)]
    same = "All arms have the same split of the data, seed by seed"
    if others:
        same = f"All arms but {', '.join(others)} have the same split of the data, seed by seed"
    return (
        f"Final values, means over {len(most)} seed{'s' * (len(most) != 1)}; bytes are up and down of all clients. {same}. Worst tenth: "
        "the mean over the worst tenth of the clients. Retained: on another task's rows (evaluate.retained), in "
        "parentheses what that is more than the first arm's."
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
