"""OCFL: FedAvg until clients' updates begin to disagree more, then one clustering, then FedAvg in each cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from rayfed import SCALAR, MethodSettings, Part, Wire, cluster, tree
from rayfed.cluster import Evidence, canonical
from rayfed.cluster.bipartition import cosines
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import Clustered

if TYPE_CHECKING:
    from rayfed import Fed, Replies, Task, Tree
    from rayfed.config.schema import Config

KINDS = (
    "hdbscan",
    "mean_shift",
    "affinity",
    "oracle",
    "singletons",
)  # clusterers that go by updates alone, or by the truth, and need no number


class OCFL(Clustered):
    """Zuziak et al. 2025, "One-Shot Clustered Federated Learning" (2503.04231), and its later, clustering-agnostic version.

    Client i of cluster c: E epochs of SGD from w_c; sends D_i.
    Server: G_ij = 1 - cos(D_i, D_j), temperature T = ||G||_p / (n (n - 1) 2^p)^{1/p} in [0, 1]. In the first round whose T is above
    that of the round before, clients are clustered by G, once and for all; each cluster begins with the common model. Always
    w_c <- w_c + eta_s mean of its members' D_i, equal weights, in the round of the clustering too.
    All clients are asked in every round: fewer would leave holes in G. Who does not reply in the round of the clustering joins the
    largest cluster (ours).
    Down: the cluster's model (P). Up: update (P). Kept at clients: nothing. At the server: a model per cluster, each client's
    cluster, the last T.
    Before the clustering, and where it finds one cluster, it is unweighted FedAvg to the bit.
    """

    logs: ClassVar = {
        "clusters/temperature": (
            "how much the clients' updates disagree, before they are clustered",
            "0 = equal, 1 = opposite",
        )
    }

    class Settings(MethodSettings):
        clusterer: dict[str, Any] = Field(
            {"kind": "hdbscan"},
            description="A clusterer that needs no number: {kind: hdbscan | mean_shift | affinity, ...}.",
        )
        p: float = Field(2.0, ge=1, description="Norm of the temperature.")
        server_lr: float = Field(1.0, gt=0, description="Server step eta_s.")

        @field_validator("clusterer")
        @classmethod
        def _known(cls, v: dict[str, Any]) -> dict[str, Any]:
            made, kind = cluster.make(v), v.get("kind")
            if made.takes_number or kind not in KINDS:
                raise ValueError(f"kind {kind} found, allowed: {', '.join(KINDS)}")
            return v

    wire: ClassVar[Wire] = Clustered.wire._replace(
        server={
            **Clustered.wire.server,
            "temperature": Part(SCALAR, note="of the last round; 2 before the first, 3 once clients are clustered"),
        }
    )

    def check(self, config: Config) -> list[str]:
        asked, n = config.per_round(), config.training_clients()
        if asked < n:
            return [
                f"federation.per_round: {config.federation.per_round} found, ocfl compares all clients in one round; allowed: null"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        everyone = torch.zeros(task.population, dtype=torch.int64)
        return {
            **super().init(task, key),
            "assignment": everyone,
            "temperature": torch.tensor(2.0, dtype=torch.float64),
        }

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        waits = state["temperature"] <= 2.0  # 3 once clients are clustered
        got, experts = self.train_clusters(state, fed, fed.sample(), weight="one", keep="delta" if waits else "")
        if self.settings.server_lr != 1.0:
            experts = {k: _along(state["experts"][k], e, self.settings.server_lr) for k, e in experts.items()}
        if not waits or not got.ids:
            return {**state, "experts": experts}
        gram = got.gram("delta").double().numpy()
        t = temperature(gram, self.settings.p)
        fed.log("clusters/temperature", t)
        if t <= float(state["temperature"]):
            return {**state, "experts": experts, "temperature": torch.tensor(t, dtype=torch.float64)}
        return {**self._cluster(state, fed, got, gram, experts), "temperature": torch.tensor(3.0, dtype=torch.float64)}

    def _cluster(self, state: Tree, fed: Fed, got: Replies, gram: np.ndarray, experts: dict[str, Tree]) -> Tree:
        """Return experts and assignment after the clustering; experts: those of the round where it finds one cluster."""
        evidence = Evidence(
            got.ids,
            torch.zeros(0),
            torch.zeros(0),
            fed.planted,
            dict,
            gram=lambda: torch.as_tensor(gram),
            key=fed.key("clusterer"),
        )
        labels = canonical(cluster.make(self.settings.clusterer).labels(evidence, 0))
        members = [labels == k for k in range(int(labels.max()) + 1)]
        if len(members) == 1:
            return {"experts": experts, "assignment": state["assignment"]}
        weights = torch.as_tensor(np.stack([m / m.sum() for m in members]))
        start = state["experts"]["0"]
        made = {str(k): tree.add(start, d, self.settings.server_lr) for k, d in enumerate(got.linear("delta", weights))}
        assignment = torch.full_like(state["assignment"], int(np.argmax([m.sum() for m in members])))
        assignment[got.ids] = torch.as_tensor(labels)
        return {"experts": made, "assignment": assignment}


def temperature(gram: np.ndarray, p: float = 2.0) -> float:
    """Return how much updates with inner products (n, n) disagree: 0 if all point one way, 1 if all pairs are opposite; 0 of one."""
    n = len(gram)
    gaps = np.maximum(1.0 - cosines(gram), 0.0)
    return float((gaps**p).sum() ** (1 / p) / (n * (n - 1) * 2.0**p) ** (1 / p)) if n > 1 else 0.0


def _along(before: Tree, after: Tree, step: float) -> Tree:
    """Return before + step (after - before)."""
    return tree.add(before, tree.sub(after, before), step)
