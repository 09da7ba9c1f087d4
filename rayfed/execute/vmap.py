"""The vectorised executor: a whole cohort in one `torch.func.vmap`, what is shared is not batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rayfed import keys, tree
from rayfed.execute.plan import Cohort, batch_of
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree
    from rayfed.visit import Info, Visit


def run(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """All clients of the cohort at once; yields once."""
    if isinstance(visit.vectorize, str):
        raise ValueError(f"this visit cannot be vectorised: {visit.vectorize}")
    begin = mapped(visit.begin, (0, None, 0, 0))
    everyone = [p.active.all(0).tolist() for p in cohort.phases]  # steps that no client has finished before

    def rest(info: Info, carry: Tree, mine: Tree, own: Tree, plans: list[tuple[Tensor, ...]]) -> tuple[Tree, Tree, Any]:
        for phase, (rows, w, active, key), every in zip(visit.phases, plans, everyone, strict=True):
            if phase.enter:
                carry = phase.enter(info, carry, shared, mine, own)
            for t, all_ in enumerate(every):
                new = phase.step(carry, batch_of(rows[t], w[t], data), key[t])
                carry = new if all_ else freeze(active[t], new, carry)
            if phase.counts:
                done = active.sum()
                info = info._replace(steps=info.steps + done, sum_lr=info.sum_lr + done * info.lr)
        return *visit.end(info, carry, shared, mine, own), info.steps

    # All that follows the first carry in one transform: entering and leaving one costs more than a small model's step.
    info, device = cohort.info, cohort.info.client.device
    plans = [
        (p.rows, p.w, p.active.to(device), keys.fold(p.keys[:, None], torch.arange(p.active.shape[1], device=device)))
        for p in cohort.phases
    ]
    parts, own, steps = mapped(rest, 0)(info, begin(info, shared, mine, own), mine, own, plans)
    yield slice(0, len(cohort.clients)), parts, own, steps


def mapped(f: Callable[..., Any], in_dims: Any) -> Callable[..., Any]:
    return torch.vmap(f, in_dims=in_dims, randomness="different")


def freeze(active: Tensor, new: Tree, old: Tree) -> Tree:
    """`new` of a client that is at work, `old` of one that has finished; a leaf that the step passed through is not copied."""
    return tree.map(lambda n, o: o if n is o else torch.where(active, n, o), new, old)
