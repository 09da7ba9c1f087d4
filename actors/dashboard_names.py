"""Names in Ray's dashboard: of jobs, of a run, and of the rounds that are being executed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.messages import ServerState
from rayfed.storage.run_status import RunStatus

if TYPE_CHECKING:
    from rayfed.config.schema import Config

MOST_NAMES = 100  # of rounds per run: Ray's pages group tasks by name


def job_metadata(configs: Sequence[Config]) -> dict[str, str]:
    """Describe a request for the dashboard's job page; `job_name` fills the list's name column."""
    first = configs[0]

    def each(values: Sequence[Any]) -> str:
        return ", ".join(dict.fromkeys(str(v) for v in values))

    return {
        "job_name": f"rayfed {first.name}",
        "method": each([c.method.name for c in configs]),
        "rounds": each([c.rounds for c in configs]),
        "clients": each([c.federation.clients for c in configs]),
        "clients per round": each([c.per_round() for c in configs]),
        "runs": str(len(configs)),
    }


def run_name(config: Config, folder: Path) -> str:
    """Name the server's call of a whole run: `fedavg, 60 clients, 20 per round, 30 rounds (quickstart-...)`."""
    where = folder.name if not folder.name.startswith("seed-") else f"{folder.parent.name}/{folder.name}"
    about = f"{config.method.name}, {config.federation.clients} clients, {config.per_round()} per round"
    return f"{about}, {config.rounds} rounds ({where})"


def round_name(config: Config, state: ServerState) -> str | None:
    """Name the rounds that are being executed: `fedavg round 4/30, 20 of 60 clients`; None while none is.

    A run has at most MOST_NAMES of them.
    """
    if state.status.ended or state.round >= config.rounds or not state.run:
        return None
    if state.status is RunStatus.STARTING:
        which = "starting"
    else:
        first, last = _named_rounds(config, state)
        which = f"round {first}" if first == last else f"rounds {first}-{last}"
        which += f"/{config.rounds}"
    return f"{config.method.name} {which}, {config.per_round()} of {config.federation.clients} clients"


def _named_rounds(config: Config, state: ServerState) -> tuple[int, int]:
    """Return the first and the last of the rounds that share a name with the next one."""
    step = math.ceil(config.rounds / MOST_NAMES)
    first = state.round // step * step + 1
    return first, min(first + step - 1, config.rounds)


class RoundNames:
    """Shows the rounds that are being executed: by a call of the server's that is named after them and lasts as long as they do.

    An actor's `repr` is taken once, when it starts; the state of a named call is what Ray's pages show live.
    """

    def __init__(self, server: Any, config: Config):
        """server: handle of the actor."""
        self.server, self.config = server, config
        self._name: str | None = None

    def show(self, state: ServerState) -> None:
        """Take the server's newest state."""
        name = round_name(self.config, state)
        if name and name != self._name:
            until = _named_rounds(self.config, state)[1] if state.status is RunStatus.RUNNING else 1
            self.server.wait_for_round.options(name=name).remote(state.run, until)
        self._name = name
