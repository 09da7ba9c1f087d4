"""A limit on the time of own code, `failures.client_timeout_s`: code that takes longer is interrupted where it is."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rayfed.config.own_errors import place

AGAIN_S = 1.0  # after which code that went on is interrupted again


class TimedOut(Exception):
    """A client's code took longer than it may; the text says so, and where it was."""


class _Over(BaseException):
    """The time is over. Not an Exception: what a client's own code catches must not hide it."""


@contextmanager
def time_limit(seconds: float | None, setting: str) -> Iterator[None]:
    """Raise TimedOut where this block takes longer; None: it may take as long as it likes.

    setting: the one that says so. The interruption comes by a signal, between two steps of Python: code that waits, sleeps or loops is
    interrupted, one call into a library is not before it returns. Only a process's main thread has signals; in others there is
    no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, armed = time.monotonic(), [True]

    def handle(signum: int, frame: Any) -> None:
        if armed:
            raise _Over

    before = signal.signal(signal.SIGALRM, handle)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        yield
    except _Over as error:
        where = place(error)
        raise TimedOut(f"still at work after {seconds:g} s{f' at {where}' if where else ''} ({setting})") from None
    finally:
        armed.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), again)
