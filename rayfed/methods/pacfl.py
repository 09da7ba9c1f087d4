"""PACFL: clusters from the subspaces of the clients' data, found once before training; then FedAvg in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import MethodSettings, Need, Part, Wire, visit
from rayfed.cluster import subspace
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import Clustered
from rayfed.wire import tensor

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit
    from rayfed.partition import Federation


class PACFL(Clustered):
    """Vahidian et al. 2023, "Efficient Distribution Similarity Identification in Clustered Federated Learning via Principal
    Angles Between Client Data Subspaces" (2209.10526).

    Once, in the first round that reaches anybody, all clients that can take part: U_i = the `basis` first left singular
    vectors of each class's training inputs (F, n_c), side by side; sends U_i (F, C p), columns of absent classes 0.
    Server: A_ij = smallest principal angle between U_i and U_j, or the sum of all, degrees; hierarchical clustering.
    Every round: FedAvg in each cluster. Clusters never change; a newcomer (held out, or not reached by the first exchange)
    sends its basis and joins the cluster nearest by the linkage.
    `angles: entries` takes arccos of the entries of U_i' U_j, which are no principal angles and depend on the order of the
    columns: here class by class, so that like is compared with like. The authors' code does so with `measure: smallest`, the
    least of all entries, and a threshold; it keeps the columns of a client's own classes alone, and under Dirichlet 20 in all,
    by class share. What the measures find: docs/heterogeneity.md.
    Down: one model (P). Up: update (P), n_i; once, U_i. Kept at clients: nothing. At the server: one model per cluster, ids.
    With one cluster it is FedAvg up to the order of batches. The bases reveal something of raw data before any training.
    """

    needs = frozenset({"classes"})
    logs: ClassVar = {
        f"clusters/proximity_{of}": (f"{of} over pairs of clients of their subspaces' proximity", "degrees")
        for of in ("min", "median", "max")
    }

    class Settings(subspace.Settings, MethodSettings):
        needs: ClassVar = {**subspace.Settings.needs, "clusters": (Need("threshold", (None,)),)}

        clusters: int = Field(3, ge=1, description="Number of clusters, where `threshold` is null.")
        weight: Literal["examples", "one"] = Field("examples", description="Weights of a cluster's mean.")

    wire: ClassVar[Wire] = Wire(
        down=Clustered.wire.down,
        up={**Clustered.wire.up, "bases": Part(tensor("F", "q"), note="U_i, once")},
        server={
            **Clustered.wire.server,
            "newcomers": Part(tensor("H", dtype="int64"), note="cluster of each held-out client"),
        },
    )

    def fits(self, federation: Federation) -> list[str]:
        if federation.kind in ("text", "instruct"):
            return [
                "method.name: pacfl compares the spans of inputs, which token ids do not have; task.data holds "
                f"{'texts' if federation.kind == 'text' else 'instructions'}"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        return {**super().init(task, key), "newcomers": torch.zeros(0, dtype=torch.int64)}

    @visit
    def bases(self, task: Task) -> Visit:
        return subspace.basis_visit(task, self.settings.basis)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if clients:
            state = self._assign_clusters(state, fed, clients)
        clients = tuple(c for c in clients if state["assignment"][c] >= 0)  # without those whose basis never came
        _, experts = self.train_clusters(state, fed, clients, weight=self.settings.weight)
        return {**state, "experts": experts}

    def _assign_clusters(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Cluster everyone in the first exchange; after it, those of `clients` that it did not reach. Return the state."""
        assignment = state["assignment"].clone()
        if bool((assignment < 0).all()):
            got = fed.ask(self.bases, range(fed.population))
            if not got.ids:
                return state
            distance = subspace.proximity(got.stacked("bases"), self.settings)
            labels = subspace.group(distance, self.settings, self.settings.clusters)
            assignment[got.ids] = torch.as_tensor(labels)
            pairs = distance[np.triu_indices(len(distance), 1)]
            for name in ("min", "median", "max") if len(pairs) else ():
                fed.log(f"clusters/proximity_{name}", getattr(np, name)(pairs))
            experts = {str(k): state["experts"]["0"] for k in range(labels.max() + 1)}
            state = {**state, "experts": experts, "assignment": assignment}
            held_out = range(fed.population, fed.federation.clients)
            found = self._join_newcomers(state, fed, held_out, metered=False)
            return {**state, "newcomers": torch.tensor([found.get(c, -1) for c in held_out], dtype=torch.int64)}
        new = [c for c in clients if assignment[c] < 0]
        for c, k in self._join_newcomers(state, fed, new).items():
            assignment[c] = k
        return {**state, "assignment": assignment}

    def _join_newcomers(self, state: Tree, fed: Fed, new: Sequence[int], metered: bool = True) -> dict[int, int]:
        """Return newcomer -> cluster. The bases that the server has are computed again where the data are."""
        if not len(new):
            return {}
        known = fed.ask(self.bases, [c for c, k in enumerate(state["assignment"].tolist()) if k >= 0], metered=False)
        got = fed.ask(self.bases, new, metered=metered)
        if not got.ids:
            return {}
        distance = subspace.proximity(got.stacked("bases"), self.settings, known.stacked("bases"))
        labels = subspace.join(distance, state["assignment"][known.ids].numpy(), self.settings)
        return dict(zip(got.ids, labels.tolist(), strict=True))

    def mine(self, state: Tree, client: int) -> Tree:
        n = len(state["assignment"])
        if n <= client < n + len(state["newcomers"]):
            return super().mine({**state, "assignment": state["newcomers"]}, client - n)
        return super().mine(state, client)
