"""Standard output and error that may be closed, or on a full disk, while the work goes on: `rayfed run ... | head -1`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


def keep_writable(say: Callable[[str], None] = lambda text: None) -> None:
    """Let this process's standard output and error take whatever is written to them, into nothing once they cannot be written to.

    say: is called with the reason, once, where that is so of standard output. Streams that were replaced stay as they are.
    """
    if sys.stdout is sys.__stdout__:
        sys.stdout = _kept(sys.stdout, say)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _kept(sys.stderr, lambda text: None)


def _kept(stream: Any, say: Callable[[str], None]) -> TextIO:
    if stream is None:  # the process was started without it (`>&-`)
        return open(os.devnull, "w", encoding="utf-8")
    raw = _Raw(stream.fileno(), say)
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Raw(io.FileIO):
    """A file descriptor that leads to nothing from the first error on."""

    def __init__(self, fd: int, say: Callable[[str], None]):
        super().__init__(fd, "w", closefd=False)
        self._say = say

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            self._say(error.strerror or str(error))
            return memoryview(data).nbytes
