"""How visits are executed: `loop`, `vmap`, `debug`; `plan` draws the batches. All give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rayfed.execute import debug, loop, vmap

if TYPE_CHECKING:
    from rayfed.execute.batches import Cohort
    from rayfed.tree import Tree
    from rayfed.visit import Visit

EXECUTORS = {"loop": loop.run, "vmap": vmap.run, "debug": debug.run}


def run(
    name: str, visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield (positions, parts, own, steps) with leaves stacked over those positions of the cohort.

    `mine` and `own` have leaves (k, ...) or are empty; `shared` is not batched.

    """
    return EXECUTORS[name](visit, cohort, shared, mine, own, data)
