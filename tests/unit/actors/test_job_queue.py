"""Jobs at their nodes: neighbours go to one node, and no actor waits while there is work."""

from __future__ import annotations

from collections import deque

import pytest

from actors.job_queue import JobQueue


def test_jobs_wait_at_their_node_and_are_taken_from_the_longest_end() -> None:
    queue = JobQueue({"a": deque([0, 1]), "b": deque([2, 3, 4])})
    assert [queue.take("a"), queue.take("a")] == [0, 1]
    assert queue.take("a") == 4 and queue.take(None) == 3 and len(queue) == 1
    queue.put_back(1)
    assert queue.take("a") == 1 and queue.take("b") == 2 and not len(queue)


@pytest.mark.parametrize(
    ("jobs", "nodes", "want"),
    [
        (6, ["a", "b", "a"], {"a": [0, 1, 2, 3], "b": [4, 5]}),  # in proportion to a node's actors
        (3, ["b", "a"], {"a": [0], "b": [1, 2]}),
        (1, ["", ""], {"": [0]}),  # no node is known yet
    ],
)
def test_neighbours_go_to_one_node(jobs: int, nodes: list[str], want: dict[str, list[int]]) -> None:
    assert {node: list(queue) for node, queue in JobQueue.distribute(jobs, nodes).queues.items()} == want
