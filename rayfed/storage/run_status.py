"""The status of a run, as `state.json` and `summary.json` say it."""

from __future__ import annotations

from enum import Enum


class RunStatus(str, Enum):
    """How a run stands; each is its word in the files.

    STARTING: until the first round is committed; RUNNING; STOPPED: asked to, after a committed round, and can be resumed; DONE:
    all rounds, or an early stop; FAILED: an error ended it, and it can be resumed from its last snapshot.
    """

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether no further round comes without a resume."""
        return self in (RunStatus.STOPPED, RunStatus.DONE, RunStatus.FAILED)

    def __str__(self) -> str:
        return self.value
