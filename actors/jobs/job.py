"""A submitted job as this project sees it: its status, its exit code, and what was noted when it was submitted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

EXIT_CODES = (2, 3, 4, 130, 143)  # those of the command
COUNTS = ("clients", "per_round", "rounds", "runs")  # of a job's metadata
KIND, NAME = "rayfed", "job_name"  # keys of Ray's metadata: what a job is for us, and the name in the dashboard's list


class JobStatus(str, Enum):
    """Ray's status of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether the job's command has ended."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


@dataclass(frozen=True)
class JobMetadata:
    """What a job carries for the commands that ask for it later.

    run: name of the run folder; out: where it is, as `--out`; folders: name in the job's package -> path of the data or model
    that travelled, on the machine that submitted it; the others are what `rayfed status` lists, None where unknown.
    """

    run: str = ""
    out: str = ""
    command: str | None = None
    method: str | None = None
    clients: int | None = None
    per_round: int | None = None
    rounds: int | None = None
    runs: int | None = None
    folders: Mapping[str, str] = field(default_factory=dict)

    def to_ray(self) -> dict[str, str]:
        """Write it as Ray keeps it: texts only."""
        texts = {k: str(v) for k, v in vars(self).items() if k != "folders" and v is not None}
        return {**texts, **({"folders": json.dumps(dict(self.folders))} if self.folders else {})}

    @classmethod
    def from_ray(cls, texts: Mapping[str, str]) -> JobMetadata:
        """Read what `to_ray` wrote; other keys are left out."""
        counts = {k: parse_count(texts.get(k)) for k in COUNTS}
        return cls(
            run=texts.get("run", ""),
            out=texts.get("out", ""),
            command=texts.get("command"),
            method=texts.get("method"),
            folders=json.loads(texts.get("folders", "{}")),
            **counts,
        )


def parse_count(text: str | None) -> int | None:
    """Read a whole number; None where the text is none."""
    return int(text) if text and text.isdigit() else None


@dataclass(frozen=True)
class SubmittedJob:
    """A job of a head. started: seconds since the epoch; driver_exit_code: of its command, None where it has none."""

    name: str
    status: JobStatus
    started: float
    metadata: JobMetadata
    driver_exit_code: int | None = None
    message: str = ""

    @classmethod
    def from_ray(cls, details: Any) -> SubmittedJob:
        """Read `ray.job_submission.JobDetails`."""
        return cls(
            name=details.submission_id,
            status=JobStatus(details.status.value),
            started=(details.start_time or 0) / 1000,
            metadata=JobMetadata.from_ray(details.metadata or {}),
            driver_exit_code=details.driver_exit_code,
            message=details.message or "",
        )

    @property
    def exit_code(self) -> int:
        """The command's own exit code; 143 for a job that was stopped, 4 where it ended without one."""
        if self.status is JobStatus.SUCCEEDED:
            return 0
        if self.status is JobStatus.STOPPED:
            return 143
        return self.driver_exit_code if self.driver_exit_code in EXIT_CODES else 4

    @property
    def standing(self) -> str:
        """The job's status in the words of this project: pending, running, done, stopped, interrupted ..."""
        if self.status is JobStatus.FAILED:
            return {130: "interrupted", 143: "terminated"}.get(self.exit_code, f"failed (exit {self.exit_code})")
        return "done" if self.status is JobStatus.SUCCEEDED else self.status.value.lower()
