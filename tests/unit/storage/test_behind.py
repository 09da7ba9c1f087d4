"""Work behind the rounds: in a thread, one piece after the other, errors at the next call."""

from __future__ import annotations

import threading

import pytest

from rayfed.storage.behind import Behind
from tests.disk import ORDERS

KINDS = {"a thread": Behind, **ORDERS}


def test_work_goes_on_beside_the_caller() -> None:
    behind, go, done = Behind(), threading.Event(), list[int]()

    def work() -> None:
        assert go.wait(30)
        done.append(1)

    behind.start(work)
    assert behind.busy() and done == []
    go.set()
    behind.wait()
    assert done == [1] and not behind.busy()


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_follow_each_other(kind: str) -> None:
    behind, done = KINDS[kind](), list[int]()
    for i in range(20):
        behind.start(lambda i=i: done.append(i))  # type: ignore[misc]
    behind.wait()
    assert done == [*range(20)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["start", "wait"])
def test_what_goes_wrong_is_raised_once_by_the_next_call(kind: str, call: str) -> None:
    behind = KINDS[kind]()

    def fail() -> None:
        raise OSError("no room")

    behind.start(fail)
    with pytest.raises(OSError, match="no room"):
        behind.start(lambda: None) if call == "start" else behind.wait()
    behind.wait()
    assert not behind.busy()


def test_a_caller_that_asks_whether_it_is_busy_hears_what_went_wrong() -> None:
    behind = Behind()
    behind.start(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        while behind.busy():
            pass
