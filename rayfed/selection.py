"""Whom a round asks of those who are there, where that is not left to chance (`federation.select`): the fastest, who had the fewest
turns, or whose last turn is the longest ago."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rayfed.config import unread
from rayfed.lazy import torch

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.tree import Tree

TURNS = "turns"  # its name in the engine's state


def choose(
    kind: str, among: np.ndarray, n: int, rng: np.random.Generator, durations: np.ndarray, turns: Tree
) -> np.ndarray:
    """Return the n clients that come first, sorted; those that are alike in random order.

    kind: fastest | fair | oldest; among: ids; durations: (N,) seconds of a visit; turns: what `after` returned, {} before the first turn.
    """
    by = (
        durations
        if kind == "fastest"
        else _record(turns, len(durations))["count" if kind == "fair" else "last"].numpy()
    )
    shuffled = rng.permutation(among)
    return np.sort(shuffled[np.argsort(by[shuffled], kind="stable")[:n]])


def after(turns: Tree, clients: int, ids: np.ndarray, round: int) -> Tree:
    """Return who had how many turns, and the last one when, after these clients had theirs: count, last (N,) int64."""
    found = {n: x.clone() for n, x in _record(turns, clients).items()}
    found["count"][ids] += 1
    found["last"][ids] = round
    return found


def _record(turns: Tree, clients: int) -> Tree:
    return turns or {n: torch.zeros(clients, dtype=torch.int64) for n in ("count", "last")}


def problems(config: Config) -> list[str]:
    """Return what is wrong with `federation.select`; known before there is a federation."""
    f, n = config.federation, config.training_clients()
    where, kind = "federation.select", f.select
    if kind == "random":
        return []
    if config.per_round() >= n:
        return [unread.sentence(where, kind, "federation.per_round", "all clients", f"per_round below {n}")]
    if f.participation.kind in ("poisson", "cyclic"):
        return [
            f"{where}: {kind} found, federation.participation.kind: {f.participation.kind} draws a round's clients by itself; allowed: "
            "random, or another kind"
        ]
    if kind == "fastest" and config.devices.profile == "none":
        return [unread.sentence(where, kind, "devices.profile", "none", "a profile of devices")]
    return []
