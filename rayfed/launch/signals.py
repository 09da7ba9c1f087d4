"""Ctrl-C and SIGTERM during runs: the first one lets the current round commit, a second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rayfed.errors import Interrupted, RunFailed, Stopped


class Stoppable(Protocol):
    """What can be asked to stop after its current round."""

    def stop(self) -> None:
        """Ask to stop; called from a signal handler."""


class Received(list[int]):
    """Numbers of the signals that came so far. done: the folder of what has ended well, once that is so: nothing is left to stop."""

    done: Path | None = None


class _EndAtOnce(BaseException):
    """A second signal. Not an Exception: handlers of a client's exceptions must not catch it."""


@contextmanager
def stop_on_signals(
    running: Stoppable, waits_for: Callable[[], str] = lambda: "the current round"
) -> Iterator[Received]:
    """Call `running.stop()` at the first signal and say what is waited for; yields the numbers of the signals.

    waits_for: says what has to end first. Interrupted at a second signal. Outside of the main thread, where Python handles no
    signals, nothing is changed.
    """
    received = Received()

    def handle(signum: int, frame: Any) -> None:
        received.append(signum)
        if len(received) > 1:
            raise _EndAtOnce
        if received.done:
            _say(f"{received.done} is done; its report is being written. Once more: end at once, without it")
            return
        running.stop()
        _say(f"stopping; waiting for {waits_for()}. Once more: end at once")

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except BaseException as e:
        if not _ends_at_once(e):
            raise
        text = "interrupted at once; continue with `rayfed resume` from the last snapshot"
        if received.done:
            text = (
                f"interrupted; {received.done} is done, without a report. Write it with: rayfed report {received.done}"
            )
        error = Interrupted(text)
        error.exit_code = 128 + received[-1]
        raise error from None
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def _ends_at_once(error: BaseException | None) -> bool:
    """Return whether a second signal is behind an error: where it comes within Ray's C++, it arrives as the cause of a SystemError."""
    while error is not None and not isinstance(error, _EndAtOnce):
        error = error.__cause__ or error.__context__
    return error is not None


def _say(text: str) -> None:
    """Write a line to standard error, past its buffer, in which the signal may have come."""
    with contextlib.suppress(OSError):
        os.write(2, f"rayfed: {text}\n".encode())


def stopped_error(received: list[int], path: Path) -> RunFailed | Interrupted:
    """Return the error of a run that stopped after its round: by a signal, or without one."""
    if not received:
        return Stopped(path)
    error = Interrupted(f"interrupted; the last round is committed. Continue with: rayfed resume {path}")
    error.exit_code = 128 + received[0]
    return error
