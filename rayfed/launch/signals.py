"""Ctrl-C and SIGTERM during runs: the first one lets the current round commit, a second one ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rayfed.errors import Interrupted, RunFailed


class Stoppable(Protocol):
    """What can be asked to stop after its current round."""

    def stop(self) -> None:
        """Ask to stop; called from a signal handler."""


class _EndAtOnce(BaseException):
    """A second signal. Not an Exception: handlers of a client's exceptions must not catch it."""


@contextmanager
def stop_on_signals(running: Stoppable) -> Iterator[list[int]]:
    """Call `running.stop()` at the first signal; yields a list that receives the numbers of the signals.

    Interrupted at a second signal. Outside of the main thread, where Python handles no signals, nothing is changed.
    """
    received: list[int] = []

    def handle(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) > 1:
            raise _EndAtOnce
        running.stop()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except _EndAtOnce:
        error = Interrupted("interrupted at once; continue with `rayfed resume` from the last snapshot")
        error.exit_code = 128 + received[-1]
        raise error from None
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def stopped_error(received: list[int], path: Path) -> RunFailed | Interrupted:
    """Return the error of a run that stopped after its round: by a signal, or without one."""
    if not received:
        return RunFailed(f"the run was stopped from outside; continue with: rayfed resume {path}")
    error = Interrupted(f"interrupted; the last round is committed. Continue with: rayfed resume {path}")
    error.exit_code = 128 + received[0]
    return error
