"""The vectorised executor: a whole cohort in one `torch.func.vmap`, what is shared is not batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import keys, tree
from rayfed.execute.plan import Cohort, batch_at
from rayfed.execute.record import call
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
    info, device = cohort.info, cohort.info.client.device
    carry = call(visit.begin, mapped(visit.begin, (0, None, 0, 0)), info, shared, mine, own)
    for phase, plan in zip(visit.phases, cohort.phases, strict=True):
        active = plan.active.to(device)
        done = active.sum(1)
        if phase.enter:
            info = info._replace(ahead=done)
            carry = call(phase.enter, mapped(phase.enter, (0, 0, None, 0, 0)), info, carry, shared, mine, own)
        key = keys.fold(plan.keys[:, None], torch.arange(active.shape[1], device=device))
        step, masked = mapped(phase.step, 0), mapped(_masked(phase.step), 0)
        for t, everyone in enumerate(plan.active.all(0).tolist()):
            batch = batch_at(plan, t, data)
            if everyone:  # nobody has finished yet
                carry = call(phase.step, step, carry, batch, key[:, t])
            else:
                carry = call(phase.step, masked, carry, batch, key[:, t], active[:, t])
        info = phase.passed(info, done)
    parts, own = call(visit.end, mapped(visit.end, (0, 0, None, 0, 0)), info, carry, shared, mine, own)
    yield slice(0, len(cohort.clients)), parts, own, info.steps


def mapped(f: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    return torch.vmap(f, in_dims=in_dims, randomness="different")


def _masked(step: Callable[..., Tree]) -> Callable[..., Tree]:
    """`step` of a client that is at work; of one that has finished, its carry. A leaf that the step passed through is not copied."""

    def either(carry: Tree, batch: Any, key: Tensor, active: Tensor) -> Tree:
        new = step(carry, batch, key)
        return tree.map(lambda n, o: o if n is o else torch.where(active, n, o), new, carry)

    return either
