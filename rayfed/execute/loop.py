"""The plain executor: one client after another, any model, any size. Its numbers are the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.execute.batches import Cohort, gather
from rayfed.execute.tuning.replay import call
from rayfed.lazy import torch
from rayfed.visits import ClientContext

if TYPE_CHECKING:
    from rayfed.tree import Tree
    from rayfed.visits import Phase, Visit

Watch = Callable[[str, dict[str, Any]], None]


def execute(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield once per client, with leaves (1, ...); see `execute.execute_visit`."""
    for i in range(len(cohort.clients)):
        parts, after, steps = execute_client(visit, cohort.one(i), shared, tree.pick(mine, i), tree.pick(own, i), data)
        yield slice(i, i + 1), *(tree.map(lambda x: x[None], t) for t in (parts, after)), steps[None]


def execute_client(
    visit: Visit, one: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree, watch: Watch | None = None
) -> tuple[Tree, Tree, Any]:
    """Execute the whole visit of a single client; return (parts, client state, steps), leaves without an axis of clients.

    one: a cohort of that client; mine, own: its own, leaves (...); watch: called as `watch(stage, arguments)` before each piece,
    in which case nothing is played from recordings.
    """
    notify = watch or (lambda stage, arguments: None)
    context = ClientContext(type(one.info)(*(x[0] for x in one.info)), shared, mine, own)
    # What cannot be vectorised may read values, which a recording does not see.
    invoke = call if watch is None and visit.vectorize is True else _call_unrecorded
    notify("begin", context._asdict())
    carry = invoke(visit.begin, visit.begin, context)
    for number, (phase, drawn) in enumerate(zip(visit.phases, one.phases, strict=True)):
        done = torch.as_tensor(drawn.active.shape[1])
        if phase.enter:
            context = context._replace(info=context.info._replace(ahead=done))
            notify(f"enter of phase {number}", {**context._asdict(), "carry": carry})
            carry = invoke(phase.enter, phase.enter, context, carry)

        def step(carry: Tree, batch: Any, key: Any, phase: Phase = phase) -> Tree:
            return tree.map(lambda x: x.detach(), phase.step(carry, batch, key))

        batch_of = gather(drawn, data)
        for t in range(drawn.active.shape[1]):
            batch = _without_clients(batch_of(t))
            notify(f"step {t} of phase {number}", {"carry": carry, "batch": batch})
            carry = invoke(phase.step, step, carry, batch, drawn.keys[0, t])
        context = context._replace(info=phase.passed(context.info, done))
    notify("end", {**context._asdict(), "carry": carry})
    parts, after = invoke(visit.end, visit.end, context, carry)
    return parts, after, context.info.steps


def _call_unrecorded(piece: Any, f: Callable[..., Any], *args: Any) -> Any:
    """Return `f(*args)`, as `replay.call` does, without recordings."""
    return f(*args)


def _without_clients(batch: Any) -> Any:
    """Take the axis of clients (there is one client) off a batch or a tuple of batches."""
    return (
        tuple(_without_clients(b) for b in batch) if isinstance(batch, tuple) else {n: x[0] for n, x in batch.items()}
    )
