"""`rayfed status`: the states of this project's jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from actors.jobs.connection import Connection
from actors.jobs.head import read_run_state
from actors.jobs.job import COUNTS, SubmittedJob
from actors.jobs.log import last_round


@dataclass(frozen=True)
class JobRow:
    """A job in the list. round: the last one that its log speaks of."""

    job: SubmittedJob
    round: int

    def to_json(self) -> dict[str, Any]:
        """Write it for `--json`: job, status, command, method, clients, per_round, rounds, runs, round, started (s)."""
        metadata = self.job.metadata
        counts = {k: v for k in COUNTS if (v := getattr(metadata, k)) is not None}
        return {
            "job": self.job.name,
            "status": self.job.standing,
            "command": metadata.command,
            "method": metadata.method,
            **counts,
            "round": self.round,
            "started": self.job.started,
        }


@dataclass(frozen=True)
class JobState:
    """One job in full. out: where its folder is, as `--out`; exit_code: None while it runs; path: its folder on the head;
    state: the run's `state.json`, {} before it has one."""

    job: str
    status: str
    method: str | None
    out: str
    exit_code: int | None
    path: str
    state: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Write it for `--json`."""
        return {k: v for k, v in asdict(self).items() if k != "exit_code" or v is not None}


def list_states(connection: Connection) -> list[JobRow]:
    """List this project's jobs, newest first."""
    return [JobRow(job, last_round(connection.read_log(name))) for name, job in connection.list_jobs().items()]


def read_state(connection: Connection, name: str) -> JobState:
    """Read a job's status, where its run folder is, and the run's live state. Raises ConfigError where there is no such job."""
    job = connection.find_job(name)
    there = read_run_state(connection, job.metadata.out, job.metadata.run)
    return JobState(
        job=name,
        status=job.standing,
        method=job.metadata.method,
        out=job.metadata.out,
        exit_code=job.exit_code if job.status.ended else None,
        path=there.path,
        state=there.state,
    )
