"""Sentences on what is waited for, where nothing has ended for a while: own code may hang, and nobody would know where."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rayfed.config.own_errors import last_own

PATIENCE_S = 30.0  # without anything that ends, before the first sentence; each further one comes after twice the time
CHECK_S = 0.5


class Watchdog:
    """Watches one thread's work from another one.

    active: returns when something ended last (`time.monotonic`); say: is called with the seconds since, and with where in own code the
    watched thread is ("mine.py, line 7", or "").
    """

    def __init__(self, active: Callable[[], float], say: Callable[[float, str], None]):
        self.active, self.say = active, say

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calling thread while this block runs."""
        over = threading.Event()
        args = (threading.get_ident(), over)
        threading.Thread(target=self._watch, args=args, name="rayfed-watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, thread: int, over: threading.Event) -> None:
        due = PATIENCE_S
        while not over.wait(min(CHECK_S, PATIENCE_S / 4)):
            idle = time.monotonic() - self.active()
            if idle < PATIENCE_S:
                due = PATIENCE_S
            elif idle >= due:
                due = 2 * idle
                with suppress(Exception):  # a sentence is worth no run
                    self.say(idle, _where(thread))


@contextmanager
def say_if_slow(what: str) -> Iterator[None]:
    """Say on standard error that `what` is still at work and where, if this block takes long: before a run there is no status."""
    began = time.monotonic()

    def say(seconds: float, where: str) -> None:
        about = f" ({where})" if where else ""
        print(
            f"rayfed: {what} has been at work for {seconds:.0f} s{about}; Ctrl-C ends it", file=sys.stderr, flush=True
        )

    with Watchdog(lambda: began, say).watching():
        yield


def _where(thread: int) -> str:
    """Return where in own code a thread is."""
    frame = sys._current_frames().get(thread)
    return last_own(traceback.extract_stack(frame)) if frame else ""
