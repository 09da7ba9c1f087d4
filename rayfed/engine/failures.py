"""What follows when a client fails or a call's actor dies: a status goes in, a decision comes out.

`failures.client_error` says what a client's failure leads to: `raise` ends the run, `drop` leaves the client out, `retry` lets
its code try once more and then leaves it out. `failures.actor_death.retries` says how often one call may lose its actor.
"""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayfed.config.own_errors import describe
from rayfed.engine.time_limit import TimedOut
from rayfed.errors import RunFailed
from rayfed.execute.debug import PieceFailed
from rayfed.lazy import torch

if TYPE_CHECKING:
    from rayfed.config.schema import Failures
    from rayfed.tree import Tree

NOT_FINITE = "NaN or infinity"  # how the reasons of what diverged begin
ATTEMPTS = 2  # of a client's code under `retry`

log = logging.getLogger(__name__)


def may_pass(error: BaseException) -> bool:
    """Return whether an error came from outside of the program (memory, disk, network), which may be otherwise another time."""
    return isinstance(error, OSError | MemoryError | torch.OutOfMemoryError)


@dataclass(frozen=True)
class Failure:
    """Why a client's reply is missing.

    reason: a sentence; trace: its traceback, where its code raised; arguments: under `debug`, what its code was given;
    attempts: how often its code was executed; repeatable: whether another attempt could end otherwise; diverged: whether it sent
    NaN or infinity; may_pass: see `may_pass`; else the run would come to it again, with the same keys on the same data.
    """

    reason: str
    trace: str = ""
    arguments: Tree | None = None
    attempts: int = 1
    repeatable: bool = True
    diverged: bool = False
    may_pass: bool = False

    @classmethod
    def of(cls, error: Exception, attempts: int) -> Failure:
        """Describe an exception of the client's code, or TimedOut; attempts: how often that was executed."""
        if isinstance(error, TimedOut):
            return cls(str(error), attempts=attempts, repeatable=False)
        cause = error.__cause__ if isinstance(error, PieceFailed) and error.__cause__ is not None else error
        trace = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__))
        arguments = error.arguments if isinstance(error, PieceFailed) else None
        return cls(describe(cause), trace, arguments, attempts, may_pass=may_pass(cause))


@dataclass(frozen=True)
class ActorDeath:
    """An actor is gone. deaths: how many there were `during` the same piece of work; cause: what the cluster says."""

    deaths: int
    during: str
    cause: str


@dataclass(frozen=True)
class Retry:
    """Do it once more."""

    reason: str


@dataclass(frozen=True)
class Drop:
    """Leave the client out of this ask."""

    reason: str


@dataclass(frozen=True)
class Raise:
    """End the run; reason: the error's sentence."""

    reason: str


Decision = Retry | Drop | Raise


@dataclass(frozen=True)
class FailurePolicy:
    """The rules of one run. client_error: raise | drop | retry; actor_retries: deaths that one piece of work survives."""

    client_error: str = "raise"
    actor_retries: int = 3

    @classmethod
    def of(cls, failures: Failures) -> FailurePolicy:
        """Return the policy that the config's section `failures` describes."""
        return cls(failures.client_error, failures.actor_death.retries)

    def decide(self, status: Failure | ActorDeath) -> Decision:
        """Return what follows from a status; the decision and its reason are logged."""
        decision = self._decide_actor(status) if isinstance(status, ActorDeath) else self._decide_client(status)
        log.info("%s: %s", type(decision).__name__, decision.reason)
        return decision

    def _decide_client(self, status: Failure) -> Decision:
        if self.client_error == "raise":
            return Raise(status.reason)
        if self.client_error == "retry" and status.repeatable and status.attempts < ATTEMPTS:
            return Retry(status.reason)
        return Drop(status.reason)

    def _decide_actor(self, status: ActorDeath) -> Decision:
        times = f"an actor died {status.deaths} times {status.during}"
        reason = f"{times} (failures.actor_death.retries={self.actor_retries}): {status.cause}"
        return Retry(reason) if status.deaths <= self.actor_retries else Raise(reason)


class ClientFailed(RunFailed):
    """A client's own code failed (or sent a NaN) and the config says that this ends the run."""

    def __init__(self, client: int, round: int, visit: str, failure: Failure):
        self.client, self.round, self.visit, self.failure = client, round, visit, failure
        self.diverged = round if failure.diverged else None
        self.certain = failure.diverged or (bool(failure.trace) and not failure.may_pass)
        trace = f"\n{failure.trace.rstrip()}" if failure.trace else ""
        super().__init__(f"client {client} failed in round {round}, visit {visit!r}: {failure.reason}{trace}")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.client, self.round, self.visit, self.failure), {"hint": self.hint})


class VectorizeError(RuntimeError):
    """`vmap` was asked for what it cannot execute; the text is the reason."""


class TooLarge(RunFailed):
    """A cohort does not fit into the device's memory. share: of a GPU that the actor has."""

    def __init__(self, clients: int, share: Any):
        self.clients, self.share = clients, share
        fewer = f"resources.cohort: {clients // 2}" if clients > 1 else "resources.executor: loop"
        self.change = f"--set {fewer.replace(': ', '=')}"
        super().__init__(
            f"out of memory: {clients} clients at once do not fit on an actor's device; try {fewer}, "
            f"task.model.checkpointing: true, or more resources.gpus_per_actor ({share} found)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.clients, self.share), {"hint": self.hint})
