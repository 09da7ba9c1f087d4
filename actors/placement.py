"""Placement: from `resources` and the cluster's nodes to a plan, or to a refusal that says what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.engine.cohorts import useful_actors
from rayfed.errors import PlacementError

if TYPE_CHECKING:
    from rayfed.config.schema import Config

Node = Mapping[str, float]  # {"CPU": 8, "GPU": 1}
SLACK = 1e-6


@dataclass(frozen=True)
class Plan:
    """How many client actors there are, and what each of them and the server gets.

    cpus, gpus: of a client actor; threads: torch threads in each; server_anywhere: whether the server may be on any node, not
    only on the driver's.
    """

    actors: int
    cpus: float
    gpus: float
    threads: int
    server_cpus: float
    server_gpus: float
    server_anywhere: bool

    def bundles(self) -> list[dict[str, float]]:
        """Return the placement group's bundles, the clients' first; the server has one only if it asks for something."""
        client = {k: v for k, v in (("CPU", self.cpus), ("GPU", self.gpus)) if v} or {"CPU": 0.001}
        server = {k: v for k, v in (("CPU", self.server_cpus), ("GPU", self.server_gpus)) if v}
        return [client] * self.actors + ([server] if server else [])


def plan_placement(config: Config, nodes: Sequence[Node]) -> Plan:
    """Plan a run on these nodes. Raises PlacementError: what was asked, what there is, which setting to change."""
    r, server = config.resources, config.resources.server
    cpus = float(r.cpus_per_actor)
    rooms = [Room.of(n) for n in nodes]

    def share(free: Sequence[Room]) -> float:
        """Return the GPU share of an actor where these rooms are free."""
        if r.gpus_per_actor != "auto":
            return float(r.gpus_per_actor)
        whole = sum(card > 1 - SLACK for n in free for card in n.cards)
        if not whole:
            return 0.0
        return 1.0 / (math.ceil(r.actors / whole) if r.actors != "auto" else 1)

    # The server goes first, to the node where it costs the fewest client actors.
    fitting, gpus = 0, share(rooms)
    candidates = []
    for i, room in enumerate(rooms):
        left = room.without(server.cpus, server.gpus)
        if left is not None:
            free = [*rooms[:i], left, *rooms[i + 1 :]]
            candidates.append((sum(n.fits(cpus, share(free)) for n in free), share(free)))
    if candidates:
        fitting, gpus = max(candidates)
    useful = fitting if gpus else min(fitting, useful_actors(config))
    actors = max(1, useful) if r.actors == "auto" else int(r.actors)
    alone = sum(n.fits(cpus, gpus) for n in rooms)
    have = ", ".join(_describe(n) for n in nodes) or "no node"
    if actors > alone:
        why = (
            f"resources.actors={r.actors} with resources.cpus_per_actor={cpus:g} and resources.gpus_per_actor={gpus:g}"
        )
        advice = "Lower resources.actors, resources.cpus_per_actor or resources.gpus_per_actor."
        raise PlacementError(
            f"{why} cannot be placed: {actors} actors asked, {alone} fit on {have}. "
            + (advice if alone else _advise_smaller(gpus, nodes))
        )
    if actors > fitting:
        raise PlacementError(
            f"resources.server={{cpus: {server.cpus:g}, gpus: {server.gpus:g}}} does not fit next to {actors} client actors of "
            f"{cpus:g} CPU and {gpus:g} GPU on {have}. Lower resources.actors or resources.server."
        )
    return Plan(actors, cpus, gpus, r.threads, server.cpus, server.gpus, server.place == "any")


def plan_largest(configs: Sequence[Config], nodes: Sequence[Node]) -> Plan:
    """Plan for several runs: the plan with most actors serves every one of them."""
    return max((plan_placement(c, nodes) for c in configs), key=lambda p: p.actors)


def shrink(plan: Plan, free: Node, least: int) -> Plan:
    """Return the plan with as many actors as what is free on the nodes together carries, at least so many."""
    room = Room.of(free).without(plan.server_cpus, plan.server_gpus)
    fitting = room.fits(plan.cpus, plan.gpus) if room else 0
    return replace(plan, actors=max(least, min(plan.actors, fitting)))


class Room(NamedTuple):
    """What is free on one node: CPUs, and the free share of each of its GPU cards."""

    cpus: float
    cards: tuple[float, ...]

    @classmethod
    def of(cls, node: Node) -> Room:
        """Return the room on a node on which nothing runs."""
        return cls(node.get("CPU", 0), (1.0,) * int(node.get("GPU", 0)))

    def fits(self, cpus: float, gpus: float) -> int:
        """Count the actors of this share that fit; a fraction never spans two cards, so 0.3 goes three times into each."""
        by_cpu = math.floor(self.cpus / cpus + SLACK) if cpus else 10**9
        if not gpus:
            return by_cpu
        if gpus <= 1:
            return min(by_cpu, sum(math.floor(card / gpus + SLACK) for card in self.cards))
        return min(by_cpu, math.floor(sum(card > 1 - SLACK for card in self.cards) / gpus + SLACK))

    def without(self, cpus: float, gpus: float) -> Room | None:
        """Return what one actor of this share leaves, None if it does not fit."""
        if self.fits(cpus, gpus) < 1 and (cpus or gpus):
            return None
        cards = sorted(self.cards)  # the fullest card that has room
        if gpus >= 1:
            whole = [i for i, card in enumerate(cards) if card > 1 - SLACK][: math.ceil(gpus - SLACK)]
            cards = [card for i, card in enumerate(cards) if i not in whole]
        elif gpus:
            i = next(i for i, card in enumerate(cards) if card > gpus - SLACK)
            cards[i] -= gpus
        return Room(self.cpus - cpus, tuple(cards))


def _advise_smaller(gpus: float, nodes: Sequence[Node]) -> str:
    """Return what to change where not one actor fits."""
    if gpus and not any(n.get("GPU", 0) for n in nodes):
        return "There is no GPU: set resources.gpus_per_actor=0 (or auto)."
    return "Not one fits: lower resources.cpus_per_actor or resources.gpus_per_actor."


def _describe(node: Node) -> str:
    return f"a node with {node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU"


def nodes_of(ray_nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the living nodes of `ray.nodes()` as plain CPU and GPU counts."""
    return [{k: n["Resources"].get(k, 0.0) for k in ("CPU", "GPU")} for n in ray_nodes if n["Alive"]]
