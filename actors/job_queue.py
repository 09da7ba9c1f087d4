"""The jobs that no actor has yet, as runs of neighbours for the nodes, so that neighbours' folds merge where they are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate


class JobQueue:
    """Each node's own jobs; an actor of a node without any takes from the end of the longest queue."""

    def __init__(self, queues: dict[str, deque[int]]):
        """queues: node -> numbers of its jobs."""
        self.queues = queues

    @classmethod
    def distribute(cls, jobs: int, nodes: Sequence[str]) -> JobQueue:
        """Distribute jobs 0 to `jobs` - 1 over the nodes in proportion to their actors. nodes: of each actor."""
        names = sorted(set(nodes))
        ends = list(accumulate(nodes.count(node) for node in names))
        cuts = [0, *(jobs * end // ends[-1] for end in ends)]
        return cls({node: deque(range(a, b)) for node, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)})

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def take(self, node: str | None) -> int:
        """Take the next job for an actor of a node, None where that is not known."""
        own = self.queues.get(node or "")
        if own:
            return own.popleft()
        return max(self.queues.values(), key=len).pop()

    def put_back(self, job: int) -> None:
        """Put a job whose actor died in front."""
        next(iter(self.queues.values())).appendleft(job)
