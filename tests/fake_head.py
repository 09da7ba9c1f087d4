"""A head's Jobs API without Ray: jobs that are given, and a log that comes in pieces and breaks once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors.jobs.connection import Connection
from actors.jobs.job import SubmittedJob

OWN_METHOD = '''"""Own."""
from rayfed.methods.fedavg import FedAvg


class Mine(FedAvg):
    """A method.

    Source: none.
    """
'''

LOG = (
    "2026-01-01 00:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
    "Running entrypoint for job j: exec python -m rayfed run config.yaml\n"
    "starting\nround 1/9  accuracy/global 0.100\n[2/6] a seed 1  round 7/9  loss/global 1.000\nreport: /r/report.html\n"
)


def details(name: str, status: str = "RUNNING", code: int | None = None, **metadata: str) -> Any:
    """A job as Ray's client describes it."""
    noted = {"rayfed": "job", "run": name, "out": "runs", "method": "fedavg", "clients": "12", "rounds": "9"}
    return SimpleNamespace(
        submission_id=name, status=SimpleNamespace(value=status), driver_exit_code=code, metadata={**noted, **metadata},
        start_time=1000, message="",
    )  # fmt: skip


def job(name: str, status: str = "RUNNING", code: int | None = None) -> SubmittedJob:
    """The same as this project reads it."""
    return SubmittedJob.from_ray(details(name, status, code))


class Client:
    """Ray's client as far as it is used. sent: the newest submission, with the files of its folder."""

    def __init__(self, *known: Any, log: str = "", pieces: int = 7):
        self.known, self.log, self.pieces, self.breaks = {j.submission_id: j for j in known}, log, pieces, 1
        self.stopped: list[str] = []
        self.sent: dict[str, Any] = {}
        self.unready = 0

    def list_jobs(self) -> list[Any]:
        return list(self.known.values())

    def get_job_info(self, name: str) -> Any:
        return self.known.get(name) or details(name, "SUCCEEDED", 0)

    def get_job_logs(self, name: str) -> str:
        return self.log

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        step = max(1, len(self.log) // self.pieces)
        for i in range(0, len(self.log), step):
            if i > len(self.log) // 2 and self.breaks:
                self.breaks -= 1
                raise RuntimeError("connection closed")
            yield self.log[i : i + step]

    def submit_job(self, **how: Any) -> str:
        if self.unready:
            self.unready -= 1
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try again later."
            )
        where = Path(how["runtime_env"]["working_dir"])
        files = {p.relative_to(where).as_posix(): p.read_bytes() for p in where.rglob("*") if p.is_file()}
        self.sent = {**how, "files": files}
        return how["submission_id"]

    def stop_job(self, name: str) -> None:
        self.stopped.append(name)
        if name in self.known:
            self.known[name].status.value = "STOPPED"

    def delete_job(self, name: str) -> None: ...


def connect(*known: Any, log: str = "", pieces: int = 7) -> Any:
    """A connection to a head with these jobs, which all have the same log."""
    made = Connection.__new__(Connection)
    made.url, made.client = "http://head:8265", Client(*known, log=log, pieces=pieces)
    return made
