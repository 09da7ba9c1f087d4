"""The log of a job: as it grows, and the lines of progress in it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator

from actors.jobs.connection import POLL_S, Connection

PROGRESS = re.compile(r"(?:\[\d+/\d+\] \S+ seed \d+  )?(?:round (\d+)/(\d+)|starting\b|running\b)")
OPENING = re.compile(r"Running entrypoint for job |\S+ \S+\s+INFO job_manager\.py:")  # Ray's own lines in a job's log


def last_round(log: str) -> int:
    """Return the last round that a job's log mentions; 0 where it mentions none."""
    rounds = [int(found[1]) for found in PROGRESS.finditer(log) if found[1]]
    return rounds[-1] if rounds else 0


async def stream_log(connection: Connection, name: str) -> AsyncIterator[str]:
    """Yield a job's log in pieces as it grows, to the job's end; after a broken connection it continues where that broke."""
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=64)
    sent = seen = 0

    async def tail() -> None:
        nonlocal sent
        while True:
            got = 0
            try:
                async for piece in connection.client.tail_job_logs(name):
                    got += len(piece)
                    if got > sent:  # after a new connection the log comes from its beginning
                        await queue.put(piece[sent - got :])
                        sent = got
            except (RuntimeError, OSError):
                pass
            await asyncio.sleep(1)

    task, checked = asyncio.create_task(tail()), 0.0
    try:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                piece = await asyncio.wait_for(queue.get(), POLL_S)
                seen += len(piece)
                yield piece
                continue
            if time.monotonic() - checked >= 1:
                checked = time.monotonic()
                if await asyncio.to_thread(connection.has_ended, name):
                    break
    finally:
        task.cancel()
    rest = await asyncio.to_thread(connection.read_log, name)
    if rest[seen:]:
        yield rest[seen:]
