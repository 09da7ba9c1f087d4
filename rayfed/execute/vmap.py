"""The vectorised executor: a whole cohort in one `torch.func.vmap`, what is shared is not batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.execute.batches import Cohort, PhaseBatches, gather
from rayfed.execute.tuning.replay import call
from rayfed.lazy import torch
from rayfed.visits import ClientContext

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree
    from rayfed.visits import Phase, Visit

CallStep = Callable[..., Any]
AXES = ClientContext._make((0, None, 0, 0))  # the clients' axis of each field; what is shared has none


def execute(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree, call_step: CallStep | None = None
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield once, for all clients of the cohort; see `execute.execute_visit`. ValueError if the visit says it cannot be vectorised.

    call_step: what calls a phase's vectorised step, (phase, step, carry, batch, key, and a mask if needed) -> carry; default `replay.call`.
    """
    if isinstance(visit.vectorize, str):
        raise ValueError(f"this visit cannot be vectorised: {visit.vectorize}")
    client, device = ClientContext(cohort.info, shared, mine, own), cohort.info.client.device
    carry = call(visit.begin, vectorized(visit.begin, (AXES,)), client)
    for phase, drawn in zip(visit.phases, cohort.phases, strict=True):
        done = drawn.active.sum(1).to(device)
        if phase.enter:
            client = client._replace(info=client.info._replace(ahead=done))
            carry = call(phase.enter, vectorized(phase.enter, (AXES, 0)), client, carry)
        carry = _execute_steps(phase, drawn, carry, data, call_step or _play_step)
        client = client._replace(info=phase.passed(client.info, done))
    parts, own = call(visit.end, vectorized(visit.end, (AXES, 0)), client, carry)
    yield slice(0, len(cohort.clients)), parts, own, client.info.steps


def _play_step(phase: Phase, step: Callable[..., Tree], *args: Any) -> Tree:
    return call(phase.step, step, *args)


def _execute_steps(phase: Phase, drawn: PhaseBatches, carry: Tree, data: Tree, call_step: CallStep) -> Tree:
    """Return the carry, leaves (k, ...), after a phase's steps.

    Cohorts are sorted by work, so clients finish in order: who has finished is set aside, and the steps get narrower.
    """
    active, key = drawn.active.T.contiguous(), drawn.keys.T.contiguous()  # (T, k)
    clients, at_work = active.shape[1], active.to(key.device)
    step, masked = vectorized(phase.step, 0), vectorized(_masked(phase.step), 0)
    batch, counts = gather(drawn, data), active.sum(1).tolist()
    # whole: leaves that the step hands on untouched, which stay whole; start: how many clients have been set aside.
    whole, aside, start = carry, [], 0
    for t, first in enumerate(active.int().argmax(1).tolist()):
        if first > start:  # those before it have finished
            n, start = first - start, first
            aside.append(tree.map(lambda x, w, n=n, t=t: x[:n].clone() if w is None or t == 0 else None, carry, whole))
            carry = tree.map(lambda x, n=n: x[n:], carry)
        mask = () if counts[t] == clients - start else (at_work[t, start:],)
        new = call_step(phase, masked if mask else step, carry, batch(t, start), key[t, start:], *mask)
        if t == 0 and counts[-1] < clients:
            whole = tree.map(lambda w, x, y: w if _same_memory(x, y) else None, whole, carry, new)
        carry = new
    return tree.map(lambda w, *xs: torch.cat(xs) if w is None else w, whole, *aside, carry) if aside else carry


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride()


def vectorized(f: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    """Return `f` over the clients' axis of the arguments that `in_dims` names (as `torch.vmap` takes it)."""
    # The transform is made when it is called, which most pieces are not: they are played.
    return lambda *args: torch.vmap(f, in_dims=in_dims, randomness="different")(*args)


def _masked(step: Callable[..., Tree]) -> Callable[..., Tree]:
    """Return `step` for a client that is at work, and for one that has finished its carry as it was.

    A leaf that the step hands on untouched is not copied.
    """

    def either(carry: Tree, batch: Any, key: Tensor, active: Tensor) -> Tree:
        new = step(carry, batch, key)
        return tree.map(lambda n, o: o if n is o else torch.where(active, n, o), new, carry)

    return either
