"""The vectorised executor: a whole cohort in one `torch.func.vmap`, what is shared is not batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.execute.batches import Cohort, PhasePlan, gather
from rayfed.execute.tuning.replay import call
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree
    from rayfed.visit import Phase, Visit


def run(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """All clients of the cohort at once; yields once."""
    if isinstance(visit.vectorize, str):
        raise ValueError(f"this visit cannot be vectorised: {visit.vectorize}")
    info, device = cohort.info, cohort.info.client.device
    carry = call(visit.begin, mapped(visit.begin, (0, None, 0, 0)), info, shared, mine, own)
    for phase, plan in zip(visit.phases, cohort.phases, strict=True):
        done = plan.active.sum(1).to(device)
        if phase.enter:
            info = info._replace(ahead=done)
            carry = call(phase.enter, mapped(phase.enter, (0, 0, None, 0, 0)), info, carry, shared, mine, own)
        carry = _stepped(phase, plan, carry, data)
        info = phase.passed(info, done)
    parts, own = call(visit.end, mapped(visit.end, (0, 0, None, 0, 0)), info, carry, shared, mine, own)
    yield slice(0, len(cohort.clients)), parts, own, info.steps


def _stepped(phase: Phase, plan: PhasePlan, carry: Tree, data: Tree) -> Tree:
    """The carry after a phase's steps. Cohorts are sorted by work: who has finished stands aside, and the steps get narrower."""
    active, key = plan.active.T.contiguous(), plan.keys.T.contiguous()  # (T, k)
    clients, at_work = active.shape[1], active.to(key.device)
    step, masked = mapped(phase.step, 0), mapped(_masked(phase.step), 0)
    batch, counts = gather(plan, data), active.sum(1).tolist()
    whole, aside, here = carry, [], 0
    for t, first in enumerate(active.int().argmax(1).tolist()):
        if first > here:  # those before it have finished
            n, here = first - here, first
            aside.append(tree.map(lambda x, w, n=n, t=t: x[:n].clone() if w is None or t == 0 else None, carry, whole))
            carry = tree.map(lambda x, n=n: x[n:], carry)
        more = () if counts[t] == clients - here else (at_work[t, here:],)
        new = call(phase.step, masked if more else step, carry, batch(t, here), key[t, here:], *more)
        if t == 0 and counts[-1] < clients:  # what a step hands on as it got it needs no putting together
            whole = tree.map(lambda w, x, y: w if _as_it_was(x, y) else None, whole, carry, new)
        carry = new
    return tree.map(lambda w, *xs: torch.cat(xs) if w is None else w, whole, *aside, carry) if aside else carry


def _as_it_was(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


def mapped(f: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    return torch.vmap(f, in_dims=in_dims, randomness="different")


def _masked(step: Callable[..., Tree]) -> Callable[..., Tree]:
    """`step` of a client that is at work; of one that has finished, its carry. A leaf that the step passed through is not copied."""

    def either(carry: Tree, batch: Any, key: Tensor, active: Tensor) -> Tree:
        new = step(carry, batch, key)
        return tree.map(lambda n, o: o if n is o else torch.where(active, n, o), new, carry)

    return either
