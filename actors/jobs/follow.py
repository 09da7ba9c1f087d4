"""`rayfed logs -f`: a job's log on this screen, to the job's end."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from actors.jobs.connection import Connection
from actors.jobs.job import JobStatus
from actors.jobs.log import OPENING, PROGRESS, stream_log
from rayfed.errors import Interrupted


def follow_job(connection: Connection, name: str, *, quiet: bool = False) -> int:
    """Show a job's log to its end and return the exit code of its command.

    quiet: only wait. Raises Interrupted on Ctrl-C; the job goes on.
    """

    async def show(screen: LogScreen) -> None:
        async for piece in stream_log(connection, name):
            screen.feed(piece)

    try:
        with LogScreen(quiet) as screen:
            asyncio.run(show(screen))
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer following; the job goes on. Follow it with: rayfed logs -f {name}; end it with: rayfed stop {name}"
        ) from None
    job = connection.read_job(name)
    if job.status is JobStatus.FAILED and job.driver_exit_code is None and job.message and not quiet:
        print(f"rayfed: the job failed: {job.message}", file=sys.stderr)
    return job.exit_code


class LogScreen:
    """Prints a job's log; on a terminal the progress is one live line, as of a run on this machine."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.part = quiet, ""
        self.live: Any = None
        self.terminal = sys.stdout.isatty()

    def __enter__(self) -> LogScreen:
        if self.terminal and not self.quiet:
            from rich.live import Live

            self.live = Live("", refresh_per_second=8, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.part:
            self.show_line(self.part)
        if self.live is not None:
            self.live.__exit__(*error)

    def feed(self, text: str) -> None:
        """Take the next piece of the log; lines are shown once they are whole."""
        *lines, self.part = (self.part + text).split("\n")
        for line in lines:
            self.show_line(line)

    def show_line(self, line: str) -> None:
        """Print a line, or put it into the live line if it is one of progress; lines of Ray's own are left out."""
        if self.quiet or OPENING.match(line):
            return
        if self.live is None:
            print(line, flush=True)
        elif PROGRESS.match(line):
            self.live.update(line)
        else:
            self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)
