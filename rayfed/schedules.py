"""Learning rates: of a round, and from step to step within a visit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayfed.config.schema import Local
    from rayfed.tree import Tree


def start_rate(local: Local, lr: Any, steps: Any) -> Tree:
    """Return what a carry holds for the rate within a visit: `lr` (0-d) of the coming step, and with `local.schedule.within: linear` also
    `left`, the steps to come out of `steps` (0-d)."""
    return {"lr": lr, "left": steps.to(lr.dtype)} if local.schedule.within == "linear" else {"lr": lr}


def advance_rate(carry: Tree) -> Tree:
    """Return `start_rate`'s part of a carry after one step: as it was, or lr_t = lr (T - t) / T, as in transformers' linear schedule."""
    if "left" not in carry:
        return {}
    left = carry["left"]
    return {"lr": carry["lr"] * (left - 1) / left.clamp(min=1), "left": left - 1}


def reads_rounds(local: Local) -> str | None:
    """Return the setting by which a round's rate follows from the number of all rounds; None where it does not."""
    kind = local.schedule.kind
    return f"local.schedule.kind: {kind}" if kind in ("linear", "cosine") else None


def round_rate(local: Local, round: int, rounds: int) -> float:
    """Return the rate of round `round` (from 1) under `local.schedule`: constant, linear, exponential, step, cosine, warm-up."""
    s, lr = local.schedule, local.optimizer.lr
    warmup = getattr(s, "warmup", 0) or 0
    if round <= warmup:
        return lr * round / (warmup + 1)
    r = round - 1 - warmup
    if s.kind == "linear":
        return lr * (1 - r / max(1, rounds - warmup))
    if s.kind == "exponential":
        return lr * s.gamma**r
    if s.kind == "step":
        return lr * s.gamma ** (r // s.every)
    if s.kind == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * r / max(1, rounds - warmup)))
    return lr
