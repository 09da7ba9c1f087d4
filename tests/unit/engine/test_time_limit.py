"""Code that takes longer than it may is interrupted, also where it catches everything; other timers go on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfed.config.own_errors import contained
from rayfed.engine import time_limit as module
from rayfed.engine.time_limit import TimedOut, time_limit


@pytest.fixture(autouse=True)
def no_other_timer() -> Iterator[None]:
    """What pytest itself may have set is put back."""
    left = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, *left)


def sleep() -> None:
    time.sleep(60)


def loop() -> None:
    while True:
        pass


def stubborn() -> None:
    for _ in range(60):
        try:
            time.sleep(60)
        except BaseException:
            break
    time.sleep(60)


@pytest.mark.parametrize("work", [sleep, loop, stubborn])
def test_hanging_code_is_interrupted(work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    says = r"still at work after 0\.05 s at .*test_time_limit\.py, line \d+ \(failures\.x\)"
    with pytest.raises(TimedOut, match=says), time_limit(0.05, "failures.x"), contained():
        work()
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_quick_code_is_not() -> None:
    for seconds in (60, None):
        with time_limit(seconds, "failures.x"):
            pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_outer_timer_goes_on() -> None:
    with pytest.raises(TimedOut, match=r"after 1 s"), time_limit(1, "outer"):
        with pytest.raises(TimedOut, match=r"after 0\.05 s"), time_limit(0.05, "inner"):
            sleep()
        sleep()


def test_other_threads_have_no_limit() -> None:
    done: list[Any] = []

    def work() -> None:
        with time_limit(0.01, "failures.x"):
            time.sleep(0.1)
        done.append(Path)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done
