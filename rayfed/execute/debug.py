"""The debugging executor: `loop` that keeps the arguments of the piece that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.execute import loop

if TYPE_CHECKING:
    from rayfed.execute.batches import Cohort
    from rayfed.tree import Tree
    from rayfed.visit import Visit


class Kept(Exception):
    """A client's failure with what its code was given: `stage`, `arguments` (a tree of NumPy arrays)."""

    def __init__(self, position: int, stage: str, arguments: Tree):
        super().__init__(f"in {stage}")
        self.position, self.stage, self.arguments = position, stage, arguments


def run(
    visit: Visit, cohort: Cohort, shared: Tree, mine: Tree, own: Tree, data: Tree
) -> Iterator[tuple[slice, Tree, Tree, Any]]:
    """As `loop`; what a client raises arrives as `Kept`, with the client's own exception as its cause."""
    for i in range(len(cohort.clients)):
        seen: dict[str, Any] = {}

        def watch(stage: str, arguments: dict[str, Any], seen: dict[str, Any] = seen) -> None:
            seen.update(stage=stage, arguments=arguments)

        try:
            parts, after, steps = loop.client(
                visit, cohort.one(i), shared, tree.pick(mine, i), tree.pick(own, i), data, watch
            )
        except Exception as e:
            raise Kept(i, seen.get("stage", "begin"), _plain(seen.get("arguments", {}))) from e
        yield slice(i, i + 1), *(tree.map(lambda x: x[None], t) for t in (parts, after)), steps[None]


def _plain(arguments: Any) -> Tree:
    if hasattr(arguments, "_asdict"):
        return _plain(arguments._asdict())
    if isinstance(arguments, tuple):
        return {str(i): _plain(a) for i, a in enumerate(arguments)}
    if isinstance(arguments, dict):
        return {k: _plain(v) for k, v in arguments.items()}
    return tree.to_numpy(arguments)
