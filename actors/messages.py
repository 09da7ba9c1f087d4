"""What the driver, the server and the client actors send each other, besides the engine's jobs (`rayfed.engine.messages`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rayfed.storage.run_status import RunStatus


@dataclass(frozen=True)
class RunRequest:
    """A run for the server.

    path, fence: its folder and the writer's number; config: as plain values; federation: reference to `Federation.numpy()`,
    which the actors get too; code: the user's own files by their names in the config; environment: the driver's variables for
    sinks.
    """

    path: str
    fence: int
    config: dict[str, Any]
    federation: Any
    code: dict[str, bytes]
    environment: dict[str, str]


@dataclass(frozen=True)
class ServerState:
    """The state of the server's current run. run: its id, None before there is one; live: the content of its `state.json`."""

    status: RunStatus = RunStatus.STARTING
    run: str | None = None
    round: int = 0
    live: dict[str, Any] = field(default_factory=lambda: {"status": RunStatus.STARTING.value})

    @classmethod
    def of(cls, live: Mapping[str, Any]) -> ServerState:
        """Read the live status of a runner."""
        return cls(RunStatus(live["status"]), live["run"], live["round"], dict(live))


@dataclass(frozen=True)
class RunSetup:
    """A run that a client actor is to make resident. run: its id; config: as plain values; code: the user's own files by their
    names in the config, which need not exist on the actor's node."""

    run: str
    config: dict[str, Any]
    code: dict[str, bytes]


@dataclass(frozen=True)
class ActorInfo:
    """Where a client actor is: process, Ray's node id, device, torch threads."""

    pid: int
    node: str
    device: str
    threads: int


@dataclass(frozen=True)
class PlacedActors:
    """Where the server and its client actors are. server: its process id."""

    server: int
    clients: list[ActorInfo]

    def to_event(self) -> dict[str, Any]:
        """Write it as the fields of the event `placed`."""
        return asdict(self)


@dataclass(frozen=True)
class Memory:
    """Bytes that a process holds: resident in RAM, and reserved on its GPU."""

    resident: float
    gpu: float
