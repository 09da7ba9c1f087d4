"""How visits are executed: all executors give the same numbers; `batches` draws what each step sees (README.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rayfed.execute import compiled, debug, loop, vmap

if TYPE_CHECKING:
    from rayfed.execute.batches import Cohort
    from rayfed.tree import Tree
    from rayfed.visits import Visit

VECTORISED = ("vmap", "compiled")  # a whole cohort at once
EXECUTORS = {"loop": loop.execute, "vmap": vmap.execute, "compiled": compiled.execute, "debug": debug.execute}


def execute_visit(
    executor: str, visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield (positions in the cohort, parts, client states, steps), leaves stacked over those positions.

    `mine` and `own` have leaves (k, ...) or are empty; `shared` has no axis of clients; `data`: the run's arrays, (rows, ...).
    Whatever a client's code raises is raised here (by `debug` as `PieceFailed`).
    """
    return EXECUTORS[executor](visit, cohort, shared, mine, own, data)


def choose_executor(executor: str, visit: Visit, arguments: bool = False) -> str:
    """Return the executor of a visit in a run under `executor`: `loop` where the visit says why it cannot be vectorised.

    arguments: whether the method gave the visit arguments, any number of which may differ: `vmap` then, where code would be compiled.
    """
    if executor in VECTORISED and isinstance(visit.vectorize, str):
        return "loop"
    return "vmap" if executor == "compiled" and arguments else executor
