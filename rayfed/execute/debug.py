"""The debugging executor: `loop` that keeps the arguments of the piece that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.config.own_errors import contained
from rayfed.execute import loop

if TYPE_CHECKING:
    from rayfed.execute.batches import Cohort
    from rayfed.tree import Tree
    from rayfed.visits import Visit


class PieceFailed(Exception):
    """A client's failure with what its code was given: `stage`, `arguments` (a tree of NumPy arrays)."""

    def __init__(self, position: int, stage: str, arguments: Tree):
        super().__init__(f"in {stage}")
        self.position, self.stage, self.arguments = position, stage, arguments


def execute(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """Yield as `loop` does; what a client raises is raised as `PieceFailed`, with the client's own exception as its cause."""
    for i in range(len(cohort.clients)):
        last: dict[str, Any] = {}

        def watch(stage: str, arguments: dict[str, Any], last: dict[str, Any] = last) -> None:
            last.update(stage=stage, arguments=arguments)

        try:
            with contained():
                parts, after, steps = loop.execute_client(
                    visit, cohort.one(i), shared, tree.pick(mine, i), tree.pick(own, i), data, watch
                )
        except Exception as e:
            raise PieceFailed(i, last.get("stage", "begin"), _as_tree(last.get("arguments", {}))) from e
        yield slice(i, i + 1), *(tree.map(lambda x: x[None], t) for t in (parts, after)), steps[None]


def _as_tree(arguments: Any) -> Tree:
    """Return tuples and named tuples among the arguments as dicts, tensors as NumPy arrays."""
    if hasattr(arguments, "_asdict"):
        return _as_tree(arguments._asdict())
    if isinstance(arguments, tuple):
        return {str(i): _as_tree(a) for i, a in enumerate(arguments)}
    if isinstance(arguments, dict):
        return {k: _as_tree(v) for k, v in arguments.items()}
    return tree.to_numpy(arguments)
