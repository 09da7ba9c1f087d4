"""Where jobs run. The engine knows only this protocol; `actors.pool` is the Ray one, `LocalPool` runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rayfed import fold
from rayfed.engine.worker import Job, Resident, Worker
from rayfed.tree import Tree

if TYPE_CHECKING:
    from rayfed.partition import Federation


class Outcome(NamedTuple):
    """A job's answer: the small part itself, handles of what stayed where it was made (or None).

    here: whether it was made in the calling process, so that nothing has moved; folded: where `meta` has no "folded", what the
    pool's `merging` takes in its place.
    """

    meta: dict[str, Any]
    large: Any
    own: Any
    here: bool = False
    folded: Any = None


class Merging:
    """What the folds of one ask gave, merged call by call along the tree that is fixed by the calls' numbers.

    This one merges in the calling process. moved: bytes that travelled here beside the outcomes themselves.
    """

    moved = 0

    def __init__(self) -> None:
        self.merger = fold.Merger(fold.merge_parts)

    def add(self, number: int, out: Outcome) -> None:
        """Call `number` has ended."""
        self.merger.add(number, fold.from_numpy(out.meta["folded"]))

    def lost(self) -> list[int]:
        """Numbers of calls whose folds are gone since they ended; they must be run and added again."""
        return []

    def result(self) -> fold.Folded:
        """All calls merged; {} if there was none."""
        return self.merger.result() or {}


class Pool(Protocol):
    """Puts payloads where workers can reach them and runs jobs, repeating those whose actor died."""

    restarts: int  # actors replaced so far
    lends: bool  # whether `lend` has a use: actors compute on CPUs, as the calling process does
    probed: dict[str, dict[str, Any]]  # what the executor probe measured, by model and local work

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None: ...

    def lend(self, run: str, resident: Resident) -> None:
        """A run that is resident in the calling process too: where jobs come one at a time they may run there."""
        ...

    def put(self, value: Tree) -> Any: ...

    def get(self, handle: Any) -> Tree: ...

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """(number of the job, its outcome) as they complete, in any order."""
        ...

    def merging(self) -> Merging: ...


class LocalPool:
    """One worker in this process: `rayfed run --local` and tests."""

    def __init__(self, device: str = "cpu"):
        self.worker, self.lends = Worker(device), device == "cpu"
        self.restarts = 0
        self.probed: dict[str, dict[str, Any]] = {}

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None:
        self.worker.setup(run, config, federation, start)

    def lend(self, run: str, resident: Resident) -> None:
        pass  # they run there anyway

    def put(self, value: Tree) -> Any:
        return value

    def get(self, handle: Any) -> Tree:
        return handle

    def merging(self) -> Merging:
        return Merging()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for i, job in enumerate(jobs):
            yield i, Outcome(*self.worker.do(job, job.handles))
