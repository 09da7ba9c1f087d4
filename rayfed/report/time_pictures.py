"""Pictures of simulated time: who worked when, and how stale replies were."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rayfed.report.curves import MAX_PANELS, arm_key, time_unit
from rayfed.report.picture import COLOURS, Picture, line_style
from rayfed.report.subject import Subject
from rayfed.storage import timeline

if TYPE_CHECKING:
    import numpy as np

LANES = 30  # clients of a Gantt chart
PER_LANE = 12  # visits of the slowest of them, after which the chart ends


def _found(subject: Subject) -> dict[str, dict[str, np.ndarray]]:
    """Return arm -> the timeline of its first run, of those that have one."""
    first = {arm: timeline.read(runs[0].path) for arm, runs in subject.arms.items() if runs}
    return {arm: t for arm, t in first.items() if t}


def gantt(subject: Subject) -> Picture | None:
    """Draw the first visits of some clients on the simulated clock, a lane each, the fastest at the bottom; of each arm's first run."""
    found = {arm: t for arm, t in _found(subject).items() if "client" in t}
    shown = dict(list(found.items())[:MAX_PANELS])
    if not shown:
        return None
    alone = subject.kind == "run"
    panels = [partial(_paint_gantt, t=t, title="" if alone else arm) for arm, t in shown.items()]
    note = f"A lane is a client, a bar a visit; at most {LANES} clients, from the start of the run."
    if len(found) > len(shown):
        note += f" {len(found) - len(shown)} more arms are not drawn."
    return Picture("gantt", "Who works when", panels, {}, note, wide=len(panels) == 1)


def lanes(t: Mapping[str, np.ndarray]) -> tuple[list[int], float]:
    """Return (the clients that a chart shows, the quickest first, and when it ends): those that came first, evenly by how long they
    take."""
    import numpy as np

    took = t["ended"] - t["began"]
    ids, first = np.unique(t["client"], return_index=True)
    order = ids[np.lexsort((ids, took[first]))]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(LANES, len(order))).round().astype(int))]
    slowest = float(took[np.isin(t["client"], chosen)].max())
    return [int(c) for c in chosen], min(float(t["began"].max()), PER_LANE * slowest) or slowest


def _paint_gantt(axis: Any, t: Mapping[str, np.ndarray], title: str) -> None:
    chosen, end = lanes(t)
    per, name = time_unit(end)
    for lane, client in enumerate(chosen):
        here = (t["client"] == client) & (t["began"] <= end)
        bars = [(float(b) / per, float(e - b) / per) for b, e in zip(t["began"][here], t["ended"][here], strict=True)]
        axis.broken_barh(bars, (lane - 0.38, 0.76), facecolors=COLOURS[0], edgecolors="white", linewidth=0.4)
    axis.set_xlim(0, end / per)
    axis.set_ylim(-0.6, len(chosen) - 0.4)
    axis.set_yticks([])
    axis.set_ylabel("clients")
    axis.set_xlabel(f"simulated {name}")
    axis.grid(False)
    axis.set_title(title)


def staleness(subject: Subject) -> Picture | None:
    """Draw which share of the replies was how many steps of the server old, a line per arm; None where all methods wait."""
    found = {arm: t["stale"] for arm, t in _found(subject).items() if "stale" in t}
    if not found:
        return None

    def paint(axis: Any) -> None:
        for i, arm in enumerate(subject.arms):
            if arm in found:
                shares = found[arm] / found[arm].sum()
                axis.stairs(shares, [x - 0.5 for x in range(len(shares) + 1)], color=line_style(i)["color"], linewidth=1.6,
                            fill=len(found) == 1)  # fmt: skip
        axis.set_xlabel("steps of the server since the model was sent")
        axis.set_ylabel("share of replies")

    last = max(len(s) for s in found.values()) - 1
    note = f"The last place has all that are {timeline.OLDEST} and more steps old." if last >= timeline.OLDEST else ""
    key = {arm: style for arm, style in arm_key(subject).items() if arm in found}
    return Picture("staleness", "How stale replies are", [paint], key, note)
