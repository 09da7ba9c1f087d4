"""What own code raises, as an error of that code: with its file and line, whatever it is.

`sys.exit`, KeyboardInterrupt and their like pass every `except Exception`, and would end a command as if it had succeeded, or as if
the user had interrupted it. Where own code is called inside `contained`, they are an ordinary exception.
"""

from __future__ import annotations

import signal
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]
METHODS = f"{HOUSE}/rayfed/methods/"
NOT_OWN = (
    *(f"{HOUSE}/{package}/" for package in ("rayfed", "actors", "tune_spaces")),
    *{sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")},
    "<frozen",
    "<string>",
)


class OwnCodeExit(Exception):
    """Own code raised what is no Exception; the text says what and where, like "SystemExit: 3 (mine.py, line 7)"."""


@contextmanager
def contained() -> Iterator[None]:
    """Raise what own code raises in this block as an OwnCodeExit, where it is no Exception.

    What a signal's handler raises passes as it is: Ctrl-C is the user's.
    """
    # Python's own handler leaves no frame by which its KeyboardInterrupt could be distinguished from one that code raises.
    plain = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if plain:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if _raised_by_signal(error):
            raise
        raise OwnCodeExit(describe(error)) from error
    finally:
        if plain and signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _raised_by_signal(error: BaseException) -> bool:
    """Return whether a handler of a signal is among the frames that an error came through."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = [getattr(signal.getsignal(s), "__code__", None) for s in numbers]
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


def describe(error: BaseException) -> str:
    """Return what own code raised and where: "ValueError: no such column (mine.py, line 7)"."""
    if isinstance(error, OwnCodeExit):
        return str(error)
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    where = "" if isinstance(error, SyntaxError) else place(error)  # it names its line
    return f"{text} ({where})" if where else text


def place(error: BaseException) -> str:
    """Return where in own code an error was raised, like "mine.py, line 7"; "" if that was in no own code."""
    return last_own(traceback.extract_tb(error.__traceback__))


def last_own(frames: Iterable[traceback.FrameSummary]) -> str:
    """Return the innermost of some frames that is in a user's code, or in a method, as `place` does."""
    own = [f for f in frames if f.filename.startswith(METHODS) or not f.filename.startswith(NOT_OWN)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
