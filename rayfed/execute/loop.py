"""The plain executor: one client after another, any model, any size. Its numbers are the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.execute.batches import Cohort, gather
from rayfed.execute.tuning.replay import call
from rayfed.lazy import torch

if TYPE_CHECKING:
    from rayfed.tree import Tree
    from rayfed.visit import Phase, Visit

Watch = Callable[[str, dict[str, Any]], None]


def run(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yields once per client, with leaves (1, ...)."""
    for i in range(len(cohort.clients)):
        parts, after, steps = client(visit, cohort.one(i), shared, tree.pick(mine, i), tree.pick(own, i), data)
        yield slice(i, i + 1), *(tree.map(lambda x: x[None], t) for t in (parts, after)), steps[None]


def client(
    visit: Visit, one: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree, watch: Watch | None = None
) -> tuple[Tree, Tree, Any]:
    """The whole visit of a single client; `watch(stage, arguments)` is told what each piece is about to get."""
    tell = watch or (lambda stage, arguments: None)
    info = type(one.info)(*(x[0] for x in one.info))
    # What cannot be vectorised may look at values, out of a recording's sight.
    run = call if watch is None and visit.vectorize is True else plainly
    tell("begin", {"info": info, "shared": shared, "mine": mine, "own": own})
    carry = run(visit.begin, visit.begin, info, shared, mine, own)
    for number, (phase, plan) in enumerate(zip(visit.phases, one.phases, strict=True)):
        done = torch.as_tensor(plan.active.shape[1])
        if phase.enter:
            info = info._replace(ahead=done)
            tell(f"enter of phase {number}", {"info": info, "carry": carry, "shared": shared, "mine": mine, "own": own})
            carry = run(phase.enter, phase.enter, info, carry, shared, mine, own)

        def step(carry: Tree, batch: Any, key: Any, phase: Phase = phase) -> Tree:
            return tree.map(lambda x: x.detach(), phase.step(carry, batch, key))

        at = gather(plan, data)
        for t in range(plan.active.shape[1]):
            batch = first(at(t))
            tell(f"step {t} of phase {number}", {"carry": carry, "batch": batch})
            carry = run(phase.step, step, carry, batch, plan.keys[0, t])
        info = phase.passed(info, done)
    tell("end", {"info": info, "carry": carry, "shared": shared, "mine": mine, "own": own})
    parts, after = run(visit.end, visit.end, info, carry, shared, mine, own)
    return parts, after, info.steps


def plainly(piece: Any, f: Callable[..., Any], *args: Any) -> Any:
    """`record.call` without recordings."""
    return f(*args)


def first(batch: Any) -> Any:
    return tuple(first(b) for b in batch) if isinstance(batch, tuple) else {n: x[0] for n, x in batch.items()}
