"""Where trials go: how many actors each has, and how many trials run at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from actors.placement import Node, Plan, Room, plan_largest
from rayfed.errors import PlacementError

if TYPE_CHECKING:
    from rayfed.config.schema import Config

MOST_TRIALS = 1000  # at a time


@dataclass(frozen=True)
class TrialPlacement:
    """trial: the placement of one trial, the same for all; at_once: trials at a time."""

    trial: Plan
    at_once: int


def count_fitting(trial: Plan, nodes: Sequence[Node]) -> int:
    """Count the trials of this placement that fit on the nodes at the same time."""
    rooms = [Room.of(n) for n in nodes]
    for count in range(MOST_TRIALS):
        for bundle in trial.bundles():
            for i, room in enumerate(rooms):
                left = room.without(bundle.get("CPU", 0), bundle.get("GPU", 0))
                if left is not None:
                    rooms[i] = left
                    break
            else:
                return count
    return MOST_TRIALS


def place_trials(configs: Sequence[Config], nodes: Sequence[Node], concurrent: int | None) -> TrialPlacement:
    """Plan a placement that serves every point.

    concurrent: trials at a time; actors are then as many as leave room for them, where the configs leave that open. Raises
    PlacementError as for a single run.
    """
    wanted = plan_largest(configs, nodes)
    if concurrent and all(c.resources.actors == "auto" for c in configs):
        while wanted.actors > 1 and count_fitting(wanted, nodes) < concurrent:
            wanted = replace(wanted, actors=wanted.actors - 1)
    fitting = count_fitting(wanted, nodes)
    if not fitting:
        raise PlacementError(
            f"resources: {wanted.actors} client actors of {wanted.cpus:g} CPU and {wanted.gpus:g} GPU do not fit together with a server "
            f"of {wanted.server_cpus:g} CPU and {wanted.server_gpus:g} GPU. Lower resources.actors or resources.server."
        )
    return TrialPlacement(wanted, concurrent or fitting)


def check_fits(trial: Plan, nodes: Sequence[Node]) -> None:
    """Raise PlacementError where a resumed sweep's placement does not fit on these nodes."""
    if count_fitting(trial, nodes):
        return
    have = ", ".join(f"a node with {n.get('CPU', 0):g} CPU and {n.get('GPU', 0):g} GPU" for n in nodes)
    raise PlacementError(
        f"the sweep's trials were planned with {trial.actors} client actors of {trial.cpus:g} CPU and {trial.gpus:g} GPU; "
        f"they do not fit on {have}"
    )


def trial_bundles(trial: Plan, node: str | None = None) -> list[dict[str, float]]:
    """Return the bundles of a trial's placement group, as Tune wants them: its own first, with the server's share, then one per
    client actor. node: address of the one that the trial's process has to be on."""
    server = {k: v for k, v in (("CPU", trial.server_cpus), ("GPU", trial.server_gpus)) if v}
    server |= {f"node:{node}": 0.001} if node else {}
    return [server, *trial.bundles()[: trial.actors]]
