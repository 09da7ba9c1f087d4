"""What a stream of tasks does to what was learned: scores of each task so far, forgetting, backward transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rayfed.lazy import torch
from rayfed.metrics import BACKWARD, FORGETTING, TASKS, Measure, scope, task_scope

if TYPE_CHECKING:
    from rayfed.tree import Tree

NAME = "stream"  # in the engine's state: what was measured at the ends of tasks


def row(
    measures: Sequence[Measure], seen: Sequence[Mapping[int, Mapping[str, float]]], kept: Tree, ends: bool
) -> tuple[dict[str, float], Tree]:
    """Return a round's metrics of a stream, and what is kept of it for later rounds.

    measures: those of single rows; seen: of each task so far, client -> sums of its scores on its test rows of that task; kept: what
    this function gave at the end of the last task, {} before the first end; ends: whether the present task ends with this round.

    With a_j the mean of task j's scores over clients, `NAME/tasks` is the mean of a_j over all tasks so far. Over those before the
    present one, `NAME/backward` is the mean of a_j minus a_j at the end of task j (Lopez-Paz and Ranzato 2017, 1706.08840), and
    `NAME/forgetting` that of how much worse a_j is than the best a_j at the end of any task from j to the last one (Chaudhry et al.
    2018, 1801.10112), whichever way NAME is better.
    """
    out: dict[str, float] = {}
    for number, sums in enumerate(seen, 1):
        out |= scope(task_scope(number), sums)
    kept = {"after": dict(kept.get("after", {})), "best": dict(kept.get("best", {}))}
    for m in measures:
        now = [out.get(f"{m.name}/{task_scope(k)}", math.nan) for k in range(1, len(seen) + 1)]
        after, best = (kept[of][m.name].tolist() if m.name in kept[of] else [] for of in ("after", "best"))
        sign = 1 if m.better == "higher" else -1
        before = range(min(len(after), len(seen) - 1))
        for name, values in (
            (TASKS, now),
            (BACKWARD, [now[j] - after[j] for j in before]),
            (FORGETTING, [sign * (best[j] - now[j]) for j in before]),
        ):
            if found := [v for v in values if not math.isnan(v)]:
                out[f"{m.name}/{name}"] = math.fsum(found) / len(found)
        if ends:
            best = [sign * max(sign * b, sign * v) for b, v in zip(best, now, strict=False)] + now[len(best) :]
            kept["after"][m.name] = torch.tensor(after + now[len(after) :], dtype=torch.float64)
            kept["best"][m.name] = torch.tensor(best, dtype=torch.float64)
    return out, kept
