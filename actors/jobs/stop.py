"""`rayfed stop`: the end of a job, after its current round or at once."""

from __future__ import annotations

import time

from actors.jobs.connection import POLL_S, Connection
from actors.jobs.head import kill_drivers
from rayfed.errors import Interrupted


def stop_job(connection: Connection, name: str, *, now: bool = False) -> str:
    """End a job and wait for its end; return a sentence that says how it ended.

    now: at once, not after the current round has been committed. Raises ConfigError where there is no such job, Interrupted on
    Ctrl-C; the job then still stops.
    """
    job = connection.find_job(name)
    if job.status.ended:
        return f"{name} has ended already: {job.standing}"
    connection.stop_job(name)
    if now:
        kill_drivers(connection, job.metadata.run)
    try:
        while not connection.has_ended(name):
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{name} is still stopping: its current round is being committed; at once: rayfed stop --now {name}"
        ) from None
    how = "at once; its last snapshot counts" if now else "its last round is committed"
    return f"{name} has stopped: {how}. Fetch it with: rayfed fetch {name}"
