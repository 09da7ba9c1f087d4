"""Who worked when on the simulated clock, and how stale replies were: `timeline.npz` of a run folder that has ended, where `devices` has a
profile.

On the way it is in the engine's state (`NAME`), so that a resumed run writes what an uninterrupted one does.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.lazy import torch
from rayfed.storage.atomic import durable_write

if TYPE_CHECKING:
    from rayfed.tree import Tree

NAME, FILE = "timeline", "timeline.npz"
MOST = 2000  # visits that are kept, the first ones
OLDEST = 1000  # staleness from which on replies are counted together

Visits = tuple[
    Sequence[int], Any, Any
]  # clients, when each began and ended, simulated seconds since the start of the run


def grown(known: Tree, visits: Sequence[Visits], stale: Mapping[int, int]) -> Tree:
    """Return what is kept after a round: client, began, ended (n,) of the first visits, and stale (S,), how many replies were 0, 1 ...
    steps of the server old. known: what was before, {} at first; stale: of the round's replies."""
    out = dict(known)
    if room := MOST - len(known.get("client", ())):
        new = {
            "client": torch.tensor([int(c) for ids, _, _ in visits for c in ids][:room], dtype=torch.int64),
            "began": torch.tensor([float(t) for _, began, _ in visits for t in began][:room], dtype=torch.float64),
            "ended": torch.tensor([float(t) for _, _, ended in visits for t in ended][:room], dtype=torch.float64),
        }
        if len(new["client"]):
            out |= {n: torch.cat([known[n], x]) if n in known else x for n, x in new.items()}
    if stale:
        before = known.get("stale", torch.zeros(0, dtype=torch.int64))
        counts = torch.zeros(max(len(before), min(max(stale), OLDEST) + 1), dtype=torch.int64)
        counts[: len(before)] = before
        for age, n in stale.items():
            counts[min(age, OLDEST)] += n
        out["stale"] = counts
    return out


def write(run: Path, kept: Tree) -> None:
    """Write what was kept, where anything was."""
    if kept:
        made = io.BytesIO()
        arrays: dict[str, Any] = {n: np.asarray(x) for n, x in kept.items()}
        np.savez_compressed(made, **arrays)
        durable_write(run / FILE, made.getvalue())


def read(run: Path) -> dict[str, np.ndarray]:
    """Return client, began, ended and (of methods that do not wait) stale; {} where nothing was kept."""
    if not (run / FILE).is_file():
        return {}
    with np.load(run / FILE) as found:
        return {n: found[n] for n in found.files}
