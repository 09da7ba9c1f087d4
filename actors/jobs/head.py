"""Questions to the head's machine, each a small job that runs `head_program` there."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from actors.jobs import head_program
from actors.jobs.connection import Connection
from actors.jobs.head_program import Answer, Environment, Killed, RunState, read_answers
from actors.jobs.job import KIND, NAME
from rayfed.errors import PlacementError, RunFailed

HELPER_S = 120  # for a small job to start and to end

A = TypeVar("A", bound=Answer)


def probe_environment(connection: Connection, requirements: Sequence[str]) -> Environment:
    """Describe the head's Python; requirements: names of distributions that it should have."""
    return _ask(connection, Environment, "probe", *requirements)


def read_run_state(connection: Connection, out: str, run: str) -> RunState:
    """Read a run's state on the head."""
    return _ask(connection, RunState, "state", out, run)


def kill_drivers(connection: Connection, run: str) -> int:
    """Kill the drivers of a run; return how many there were."""
    return _ask(connection, Killed, "kill", run).drivers


@contextlib.contextmanager
def helper_job(connection: Connection, *arguments: str) -> Iterator[str]:
    """Start `head_program.py ARGUMENTS` as a job and yield its name; the job leaves no trace."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(head_program.__file__, Path(folder) / "head_program.py")
        name = connection.submit_job(
            entrypoint=shlex.join(["python", "head_program.py", *arguments]),
            submission_id=f"rayfed-helper-{secrets.token_hex(4)}",
            runtime_env={"working_dir": folder},
            metadata={KIND: "helper", NAME: f"rayfed {arguments[0]}"},
        )
    try:
        yield name
    finally:
        with contextlib.suppress(Exception):
            if not connection.has_ended(name):
                connection.stop_job(name)
                connection.wait_for_end(name, 20)
            connection.delete_job(name)


def _ask(connection: Connection, kind: type[A], *arguments: str) -> A:
    """Return the helper's answer. Raises PlacementError where it does not start, RunFailed with its log where it says nothing."""
    with helper_job(connection, *arguments) as name:
        if not connection.wait_for_end(name, HELPER_S):
            raise PlacementError(
                f"{connection.url}: the head did not start a small job in {HELPER_S} s; it may be out of memory or CPUs"
            )
        log = connection.read_log(name)
        found = [a for a in read_answers(log.splitlines()) if isinstance(a, kind)]
        if not found:
            message = (log or connection.read_job(name).message).strip()
            raise RunFailed(f"{connection.url}: the head could not run `python`: {message[-2000:]}")
        return found[-1]
