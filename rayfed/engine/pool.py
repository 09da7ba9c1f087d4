"""Where jobs run. The engine knows only this protocol; `actors.pool` is the Ray one, `LocalPool` runs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rayfed import fold
from rayfed.engine.messages import CallResult, Job, Value
from rayfed.engine.resident import Resident
from rayfed.engine.worker import Worker
from rayfed.tree import Tree

if TYPE_CHECKING:
    from rayfed.execute.tuning.autotune import Timing
    from rayfed.partition import Federation


class Outcome(NamedTuple):
    """A job's answer at the server: the result itself, handles of what stayed where it was made (or None).

    large: of the parts that stayed; states: of the new client states; in_process: whether it was made in the calling process,
    so that nothing has moved; folded: where the result has no folds, what the pool's `merging` takes in their place.
    """

    result: CallResult | Value
    large: Any = None
    states: Any = None
    in_process: bool = False
    folded: Any = None


class Merging:
    """Merges the folds of one ask, call by call, along the tree that is fixed by the calls' numbers; here in the calling process.

    moved: bytes that travelled to this process in addition to the outcomes themselves.
    """

    moved = 0

    def __init__(self) -> None:
        self.merger = fold.Merger(fold.merge_parts)

    def add(self, number: int, out: Outcome) -> None:
        """Add the folds of call `number`, which has ended."""
        assert isinstance(out.result, CallResult) and out.result.folded is not None
        self.merger.add(number, fold.from_numpy(out.result.folded))

    def lost(self) -> list[int]:
        """Return the numbers of calls whose folds are gone since they ended; they must be executed and added again."""
        return []

    def result(self) -> fold.Folded:
        """Return the folds of all calls, merged; {} if there was no call."""
        return self.merger.result() or {}


class Pool(Protocol):
    """Puts payloads where workers can reach them and runs jobs, repeating those whose actor died."""

    restarts: int  # actors replaced so far
    adopts: bool  # whether `adopt` is of use: actors compute on CPUs, as the calling process does
    timings: dict[str, Timing]  # what timing the executors gave, by model and local work

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None:
        """Make a run resident in every worker."""
        ...

    def adopt(self, run: str, resident: Resident) -> None:
        """Adopt a run that is resident in the calling process: jobs of it that come one at a time may be done there."""
        ...

    def begin_here(self, run: str, resident: Resident, client_s: float) -> None:
        """Let the calling process do a run's jobs until there are workers, where it is resident there and an ask is little work.

        client_s: seconds of one client's visit, estimated.
        """
        ...

    def put(self, value: Tree) -> Any:
        """Put a tree of NumPy arrays where workers reach it; returns its handle."""
        ...

    def get(self, handle: Any) -> Tree:
        """Fetch the tree behind a handle."""
        ...

    def execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """Yield (number of the job, its outcome) as they complete, in any order."""
        ...

    def merging(self) -> Merging:
        """Begin to merge the folds of one ask."""
        ...


class LocalPool:
    """One worker in this process: `rayfed run --local` and tests."""

    def __init__(self, device: str = "cpu"):
        self.worker, self.adopts = Worker(device), device == "cpu"
        self.restarts = 0
        self.timings: dict[str, Timing] = {}

    def setup(self, run: str, config: Any, federation: Federation, start: Any) -> None:
        self.worker.setup(run, config, federation, start)

    def adopt(self, run: str, resident: Resident) -> None:
        pass  # its jobs are done there anyway

    def begin_here(self, run: str, resident: Resident, client_s: float) -> None:
        pass  # likewise

    def put(self, value: Tree) -> Any:
        return value

    def get(self, handle: Any) -> Tree:
        return handle

    def merging(self) -> Merging:
        return Merging()

    def execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        for i, job in enumerate(jobs):
            yield i, Outcome(*self.worker.do(job, job.handles))
