"""The status of a run, as written in `state.json` and `summary.json`."""

from __future__ import annotations

from enum import Enum


class RunStatus(str, Enum):
    """The status of a run; each value is its word in the files.

    STARTING: until the first round is committed; RUNNING; STOPPED: asked to, after a committed round, and can be resumed; DONE:
    all rounds, or an early stop; FAILED: an error ended it, and unless that would recur it can be resumed from its last snapshot.
    """

    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether no further round follows without a resume."""
        return self in (RunStatus.STOPPED, RunStatus.DONE, RunStatus.FAILED)

    def __str__(self) -> str:
        return self.value
