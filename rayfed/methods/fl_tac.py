"""FL-TAC: the clients' adapters are clustered by k-means in every round, and each cluster has its mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from rayfed import MethodSettings, tree
from rayfed.adapters import lora
from rayfed.cluster import match
from rayfed.cluster.kmeans import kmeans
from rayfed.lazy import F, torch
from rayfed.methods._bases.clustered import Clustered
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.methods._bases.task_vectors import gram

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FLTAC(Clustered, OverLoRA):
    """Ping et al. 2024, "FL-TAC: Enhanced Fine-Tuning in Federated Learning via Low-Rank, Task-Specific Adapter Clustering"
    (2404.15384).

    Client i: its adapter <- local training from that of its cluster, before it has one from the mean of all (ours); sends the change.
    Server: k-means of the adapters of the round into `clusters`; each cluster's adapter is the mean of its members', A and B each by
    itself, weighted by examples (the head alike).
    The paper has an adapter for each of a client's tasks. Here a client has one task: one with several is as many clients.
    Ours: distances are of A and B, without the head; clusters keep their names by the nearest mean of the round before (an assignment of
    all of them at once); a cluster nobody was put into stays; a client that never took part is served the adapter with the least
    loss on its training data.
    Down: the cluster's A (r, n), B (m, r) of each layer, head. Up: their change, n_i. Kept at clients: nothing.
    At the server: the clusters' adapters and heads, each client's cluster; within a round the adapters of all its clients.
    """

    one_rank = "adapters are compared number by number"

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of clusters: of tasks.")
        weight: Literal["examples", "one"] = Field(
            "examples", description="Weights of k-means and of the means: by examples, or equal."
        )

    def init(self, task: Task, key: int) -> Tree:
        return {**super().init(task, key), "experts": {"0": task.initial}}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        known = sorted(state["experts"], key=int) if bool((state["assignment"] >= 0).any()) else []
        experts = [state["experts"][k] for k in known]
        newcomers = tree.map(lambda *x: sum(x) / len(x), *experts) if known else task.initial
        starts = tree.stack([*experts, newcomers])
        place = {int(k): i for i, k in enumerate(known)}
        clients = fed.sample()
        at = {c: torch.tensor(place.get(int(state["assignment"][c]), len(known))) for c in clients}
        mine = {c: {"place": p} for c, p in at.items()}
        got = fed.ask(self.train, clients, shared={"experts": starts}, mine=mine)
        if not got.ids:
            return state
        begun = torch.stack([at[c] for c in got.ids])
        solutions = tree.add(tree.map(lambda x: x[begun.to(x.device)], starts), got.stacked("delta"))
        pairs = [n for pair in lora.pairs(solutions) for n in pair]
        n = got.examples if self.settings.weight == "examples" else torch.ones_like(got.examples)
        labels = torch.as_tensor(
            kmeans(gram(solutions, pairs), self.settings.clusters, fed.key("k-means"), weight=n.numpy())
        )
        member = F.one_hot(labels).T * n
        means = tree.unstack(tree.combine(member / member.sum(1, keepdim=True), solutions))
        near = [[-_apart(m, state["experts"][k], pairs) for k in known] for m in means]
        ids = match(np.reshape(near, (len(means), len(known))), [int(k) for k in known], len(known))
        assignment = state["assignment"].clone()
        assignment[got.ids] = torch.tensor(ids)[labels]
        old = state["experts"] if known else {}
        return {"experts": {**old, **{str(k): m for k, m in zip(ids, means, strict=True)}}, "assignment": assignment}


def _apart(a: Tree, b: Tree, names: list[str]) -> float:
    """Return the squared distance of two trees over some entries."""
    return float(sum((a[n] - b[n]).double().square().sum() for n in names))
