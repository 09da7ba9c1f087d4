"""The vectorised executor: a whole cohort in one `torch.func.vmap`, what is shared is not batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import keys, tree
from rayfed.execute.plan import Cohort, batch_at
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree
    from rayfed.visit import Visit


def run(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """All clients of the cohort at once; yields once."""
    if isinstance(visit.vectorize, str):
        raise ValueError(f"this visit cannot be vectorised: {visit.vectorize}")
    info = cohort.info
    carry = mapped(visit.begin, (0, None, 0, 0))(info, shared, mine, own)
    for phase, plan in zip(visit.phases, cohort.phases, strict=True):
        if phase.enter:
            carry = mapped(phase.enter, (0, 0, None, 0, 0))(info, carry, shared, mine, own)
        step, fold = mapped(phase.step, 0), mapped(keys.fold, (0, None))
        for t in range(plan.active.shape[1]):
            active = plan.active[:, t]
            new = step(carry, batch_at(plan, t, data), fold(plan.keys, t))
            carry = new if bool(active.all()) else freeze(active.to(info.client.device), new, carry)
        if phase.counts:
            done = plan.active.sum(1).to(info.steps.device)
            info = info._replace(steps=info.steps + done, sum_lr=info.sum_lr + done * info.lr)
    parts, own = mapped(visit.end, (0, 0, None, 0, 0))(info, carry, shared, mine, own)
    yield slice(0, len(cohort.clients)), parts, own, info.steps


def mapped(f: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    return torch.vmap(f, in_dims=in_dims, randomness="different")


def freeze(active: Tensor, new: Tree, old: Tree) -> Tree:
    """`new` for active clients, `old` for finished ones; a leaf that the step passed through is not copied."""

    def leaf(n: Tensor, o: Tensor) -> Tensor:
        if n.data_ptr() == o.data_ptr() and n.stride() == o.stride():
            return o
        return torch.where(active.reshape(-1, *(1,) * (n.dim() - 1)), n, o)

    return tree.map(leaf, new, old)
