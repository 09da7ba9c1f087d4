"""What a command is doing before its first round: reading data, tokenising, trying a model. Told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Listener = Callable[[str], None]  # takes what begins, in words: "reading digits"

_listeners: list[Listener] = []


def begin(what: str) -> None:
    """Say what this process begins to do; it goes on until the next phase, or until a round is committed."""
    for listener in list(_listeners):
        with suppress(Exception):  # what only shows something ends no run
            listener(what)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell a listener of the phases of this process, whichever thread they are of, while this block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
