"""How often clients take part, learnt from the gaps between their visits (Wang and Ji 2024, 2306.03401)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rayfed import Part, tensor
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Tree

PARTS = {
    "gap": Part(tensor("N", dtype="int64"), note="rounds since a client's last recorded interval"),
    "count": Part(tensor("N", dtype="int64"), note="recorded intervals of each client"),
    "interval": Part(tensor("N", dtype="float64"), note="their mean"),
}


def start(clients: int) -> Tree:
    """Return the record before round 1."""
    none = torch.zeros(clients, dtype=torch.int64)
    return {"gap": none, "count": none.clone(), "interval": torch.ones(clients, dtype=torch.float64)}


def weights(record: Tree) -> Tensor:
    """Return omega_i, about one over the chance with which client i takes part: its mean interval, 1 before it has one; (N,) float64.

    To be read before `after`, so that a weight does not depend on who takes part in its round.
    """
    return record["interval"]


def after(record: Tree, ids: Sequence[int], cutoff: int) -> Tree:
    """Return the record after a round in which clients `ids` took part. An interval ends with a visit, or after `cutoff` rounds
    without one; it counts every round, also those in which nobody was there."""
    here = torch.zeros_like(record["gap"], dtype=torch.bool)
    here[list(ids)] = True
    gap = record["gap"] + 1
    ends = here | (gap >= cutoff)
    count = record["count"] + ends
    mean = (record["interval"] * record["count"] + gap) / count.clamp(min=1)
    return {"gap": torch.where(ends, 0, gap), "count": count, "interval": torch.where(ends, mean, record["interval"])}
