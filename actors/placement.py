"""Where actors go: from `resources` and the cluster's nodes to a plan, or to a refusal that says what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rayfed.errors import PlacementError

if TYPE_CHECKING:
    from rayfed.config import Config

Node = Mapping[str, float]  # {"CPU": 8, "GPU": 1}
SLACK = 1e-6


@dataclass(frozen=True)
class Plan:
    """actors client actors of cpus and gpus each, `threads` torch threads in each; server: its own share."""

    actors: int
    cpus: float
    gpus: float
    threads: int
    server_cpus: float
    server_gpus: float
    server_anywhere: bool

    def bundles(self) -> list[dict[str, float]]:
        """Placement-group bundles, the clients' first; the server has one only if it asks for something."""
        client = {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v} or {"CPU": 0.001}
        server = {k: v for k, v in (("CPU", self.server_cpus), ("GPU", self.server_gpus)) if v}
        return [client] * self.actors + ([server] if server else [])


def plan(config: Config, nodes: Sequence[Node]) -> Plan:
    """The plan for a run on these nodes. Raises PlacementError: what was asked, what exists, which setting to change."""
    r = config.resources
    cpus = float(r.cpus_per_actor)
    total_gpu = int(sum(n.get("GPU", 0) for n in nodes))
    gpus = r.gpus_per_actor
    if gpus == "auto":
        per_gpu = math.ceil(r.actors / total_gpu) if total_gpu and r.actors != "auto" else 1
        gpus = 1.0 / per_gpu if total_gpu else 0.0
    fits = sum(_fits(n, cpus, float(gpus)) for n in nodes)
    server = r.server
    spare_cpu = sum(n.get("CPU", 0) for n in nodes) - server.cpus
    if r.actors == "auto":
        actors = min(fits, int(spare_cpu // cpus) if cpus else fits)
        if not gpus:
            actors = min(actors, _useful(config))
        actors = max(1, actors)
    else:
        actors = int(r.actors)
    have = ", ".join(_say(n) for n in nodes) or "no node"
    if actors > fits:
        why = f"resources.actors={r.actors} with resources.cpus_per_actor={cpus:g} and resources.gpus_per_actor={float(gpus):g}"
        raise PlacementError(
            f"{why} cannot be placed: {actors} actors asked, {fits} fit on {have}. "
            + (
                "Lower resources.actors, resources.cpus_per_actor or resources.gpus_per_actor."
                if fits
                else _never(cpus, float(gpus), nodes)
            )
        )
    if actors * cpus > spare_cpu + SLACK or server.gpus > total_gpu - actors * float(gpus) + SLACK:
        raise PlacementError(
            f"resources.server={{cpus: {server.cpus:g}, gpus: {server.gpus:g}}} does not fit beside {actors} client actors of "
            f"{cpus:g} CPU and {float(gpus):g} GPU on {have}. Lower resources.actors or resources.server."
        )
    return Plan(actors, cpus, float(gpus), max(1, int(cpus)), server.cpus, server.gpus, server.place == "any")


def _fits(node: Node, cpus: float, gpus: float) -> int:
    """Actors of this share on one node; a fraction never spans two GPUs, so 0.3 goes three times into each."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus + SLACK) if cpus else 10**9
    if not gpus:
        return by_cpu
    cards = int(node.get("GPU", 0))
    by_gpu = cards * math.floor(1 / gpus + SLACK) if gpus <= 1 else math.floor(cards / gpus + SLACK)
    return min(by_cpu, by_gpu)


def _never(cpus: float, gpus: float, nodes: Sequence[Node]) -> str:
    if gpus and not any(n.get("GPU", 0) for n in nodes):
        return "There is no GPU: set resources.gpus_per_actor=0 (or auto)."
    return "Not one fits: lower resources.cpus_per_actor or resources.gpus_per_actor."


def _say(node: Node) -> str:
    return f"a node with {node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU"


def _useful(config: Config) -> int:
    """More actors than a round has calls would only wait."""
    size = config.resources.cohort
    asked = max(1, config.per_round())
    return math.ceil(asked / int(size)) if size != "auto" else max(2, 2 * math.ceil(asked / 64))


def nodes_of(ray_nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The living nodes of `ray.nodes()` as plain CPU and GPU counts."""
    return [{k: n["Resources"].get(k, 0.0) for k in ("CPU", "GPU")} for n in ray_nodes if n["Alive"]]
