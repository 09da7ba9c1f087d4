"""What a run took, from what it wrote down: the arithmetic of the tables.

body: the median of the times inside rounds, from asking the clients to the new weights. period: what a user waits for per round, the
whole time from the first round's begin to the end of the last, evaluation, commits and all else between rounds included, over their number.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

MEASURED = ("body_s", "period_s", "evaluate_s", "cpu_s", "first_round_s", "total_s", "pss_mb", "once_s")


class Span(NamedTuple):
    """Seconds since the epoch: begin of the first round and end of the last, what comes after it included; the rounds' own seconds,
    and those of each evaluation."""

    begin: float
    finished: float
    rounds: list[float]
    evaluations: list[float]

    def figures(self, command_began: float) -> dict[str, float]:
        return {
            "body_s": statistics.median(self.rounds),
            "period_s": (self.finished - self.begin) / len(self.rounds),
            **({"evaluate_s": statistics.median(self.evaluations)} if self.evaluations else {}),
            "first_round_s": self.begin + self.rounds[0] - command_began,
            "rounds": len(self.rounds),
        }


def of_side(times: Mapping[str, Any]) -> Span:
    """Read what `plan.Times` wrote."""
    rounds = times["rounds"]
    return Span(rounds[0][0], times["finished"], [end - begin for begin, end in rounds], times["evaluations"])


def of_run(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> Span:
    """Read rayfed's rows and events: rounds begin once the executor is chosen, and have ended when the run is finished."""
    at = {e["kind"]: datetime.fromisoformat(e["time"].replace("Z", "+00:00")).timestamp() for e in reversed(events)}
    begin = at.get("executor") or at["created"]  # the first of its kind
    evaluations = [r["time/evaluate"] for r in rows if r.get("time/evaluate") is not None]
    return Span(begin, at["finished"], [r["time/round"] for r in rows], evaluations)


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return figure -> median, least and largest of the repetitions."""
    out: dict[str, Any] = {}
    for name in MEASURED:
        if found := [r[name] for r in runs if name in r]:
            out[name] = {"median": statistics.median(found), "min": min(found), "max": max(found)}
    return out | {"repeats": len(runs), "rounds": int(runs[0]["rounds"])}


def value(found: Mapping[str, Any], name: str) -> float | None:
    """Return a figure's median; for a period of an older sitting, which had none, that of the times between rounds' begins."""
    have = found.get(name) or (found.get("round_s") if name == "period_s" else None)
    return have["median"] if have else None


def ratio(
    of: Mapping[str, Any], to: Mapping[str, Any], name: str = "period_s", other: str | None = None
) -> float | None:
    """Return how many times a figure of one side is that of another, None where either was not measured."""
    above, below = value(of, name), value(to, other or name)
    return None if above is None or below is None else above / below
