"""Experts of clusters that live for a round or for the run, and clients that start nearer to theirs than to the model for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import PARAMS, Part, Wire, mean, sgd_visit, stack, tensor, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.finds_clusters import FindsClusters

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class LivingExperts(FindsClusters):
    """Base: `FindsClusters` whose experts may go on from where they were, in place of being made of the model for all in each round.

    lifetime: run: a known expert is trained on by the round's members of its cluster, in a second exchange after the clusters are found; a
    new one is what its members made of the model for all. With the planted groups as clusters these experts are FedAvg in each group, and
    the model for all is what it is without them, to the bit.
    own_share b: a client starts from theta + b (omega - theta), omega its cluster's expert, theta before it has one. What it sends is still
    relative to theta, so averages, experts, clusterers and their trials read it as ever. 0 is the paper; 1 trains the experts alone.
    """

    class Settings(FindsClusters.Settings):
        lifetime: Literal["round", "run"] = Field(
            "round",
            description="How long a cluster's expert lives: it is rebuilt from the model for all in each round (the paper), or its members "
            "train it on from where it was, in a second exchange (ours).",
        )
        own_share: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Share of its cluster's expert in what a client starts from; the rest is the model for all, which alone is the "
            "paper (ours).",
        )

    wire: ClassVar[Wire] = Wire(
        down={
            **FindsClusters.wire.down,
            "own": Part(
                stack("K", PARAMS),
                note="the expert of the client's cluster; only with lifetime: run and own_share",
                routed=True,
            ),
            "place": Part(tensor(dtype="int64"), note="which row of that stack is meant; nothing in a deployment"),
        },
        up={
            **FindsClusters.wire.up,
            "delta": Part(PARAMS, update=True, robust=True, note="relative to the model for all"),
            "grown": Part(PARAMS, update=True, robust=True, note="of the cluster's expert; only with lifetime: run"),
        },
        server=FindsClusters.wire.server,
    )

    @property
    def living(self) -> bool:
        return self.settings.lifetime == "run"

    def start(self, client: ClientContext) -> Tree:
        share, theta = self.settings.own_share, super().start(client)
        if not share:
            return theta
        return tree.add(theta, tree.sub(tree.pick(client.shared["own"], client.mine["place"]), theta), share)

    def starts(self, state: Tree, clients: Sequence[int]) -> tuple[Tree, dict[int, Tree] | None]:
        """Return what `train` sends down, for all and for each client."""
        if not self.settings.own_share:
            return {"model": state["model"]}, None
        return {"model": state["model"], "own": self.serve(state)["experts"]}, {
            c: self.place(state, c) for c in clients
        }

    @visit
    def train_expert(self, task: Task) -> Visit:
        """Train the expert of the client's cluster on from where it was (lifetime: run)."""

        def own(client: ClientContext) -> Tree:
            return tree.pick(client.shared["own"], client.mine["place"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"grown": tree.sub(carry["model"], own(client))}, client.own

        return sgd_visit(task.loss, self.local, start=lambda client: {"model": own(client)}, end=end)

    def lived(
        self, state: Tree, clients: list[int], labels: np.ndarray, ids: list[int], fresh: list[Tree], fed: Fed
    ) -> list[Tree]:
        """Return the experts of the round's clusters 0..K-1: `fresh` ones, or with lifetime: run those that were known before, trained on.

        clients, labels: (n,) who is in which, or MISSING; ids: the clusters' persistent ids.
        """
        known = [j for j, k in enumerate(ids) if str(k) in state["experts"]]
        if not self.living or not known:
            return fresh
        before = [state["experts"][str(ids[j])] for j in known]
        mine = {
            c: {"place": torch.tensor(known.index(j))}
            for c, j in zip(clients, labels.tolist(), strict=True)
            if j in known
        }
        got = fed.ask(
            self.train_expert, list(mine), shared={"own": tree.stack(before)}, mine=mine, fold=mean("grown", by="place")
        )
        moved = got.folded["grown"] if got.ids else {}
        after = [tree.add(e, moved[i]) if i in moved else e for i, e in enumerate(before)]
        return [after[known.index(j)] if j in known else e for j, e in enumerate(fresh)]
