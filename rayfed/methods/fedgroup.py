"""FedGroup: groups by the directions of clients' first updates, found once; FedAvg in each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Visit, Wire, sgd_visit, tree, visit
from rayfed.cluster.kmeans import kmeans
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import Clustered
from rayfed.visits import steps
from rayfed.wire import stack

if TYPE_CHECKING:
    from rayfed import Fed, Replies, Task, Tree
    from rayfed.config.schema import Config


class FedGroup(Clustered):
    """Duan et al. 2021, "FedGroup: Efficient Clustered Federated Learning via Decomposed Data-Driven Measure" (2010.06870).

    Once, in the first round that reaches anybody: `per_group` K clients (or all) train `pretrain` steps from the initial model w_0
    and send dW_i. V (P, K): the first K left singular vectors of [dW_1 ... dW_m]; E_ik = cos(dW_i, v_k); k-means on E gives K groups,
    with models c_k = w_0 + mean dW_i over the group.
    A newcomer, when it is first asked: trains `pretrain` steps from w_0 and joins the group k with the least (1 - cos(dW_i, d_k)) / 2,
    d_k = c_k - w_0 as it was found; a group that was found empty gets nobody.
    Every round: FedAvg in each group; then with `eta` > 0 (FedGrouProx's inter-group step) c_k <- (c_k + sum_{l != k} b_l c_l) /
    (1 + sum_{l != k} b_l), b_l = eta / ||c_l||.
    V and E follow from inner products of the updates, which stay where the clients are. Groups never change.
    Down: a group's model (P); once for each client, w_0 (P). Up: update (P), n_i; once, dW_i (P). Kept at clients: nothing.
    At the server: K models, w_0, K directions d_k, each client's group. With one group it is FedAvg from the pre-trained mean.
    """

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of groups, K.")
        pretrain: int = Field(50, ge=1, description="Local steps by which a client shows its direction.")
        per_group: int = Field(20, ge=1, description="Clients per group whose directions find the groups.")
        eta: float = Field(0.0, ge=0, description="Rate of the step between groups; 0 switches it off.")
        weight: Literal["examples", "one"] = Field("examples", description="Weights of a group's mean.")

    wire: ClassVar[Wire] = Wire(
        down={**Clustered.wire.down, "start": Part(PARAMS, note="w_0, once for each client")},
        up=Clustered.wire.up,
        server={
            **Clustered.wire.server,
            "start": Part(PARAMS, note="w_0"),
            "directions": Part(stack("K", PARAMS), note="d_k"),
        },
    )
    no_rule = "groups are found from single updates, which no rule has judged"

    def check(self, config: Config) -> list[str]:
        k, n = self.settings.clusters, config.training_clients()
        return [f"method.clusters: {k} found, allowed: at most {n} (the clients that take part)"] if k > n else []

    def init(self, task: Task, key: int) -> Tree:
        start, k = task.init_params(key), self.settings.clusters
        return {
            "experts": {str(i): start for i in range(k)},
            "assignment": torch.full((task.population,), -1),
            "start": start,
            "directions": tree.stack([tree.zeros(start)] * k),
        }

    @visit
    def show(self, task: Task) -> Visit:
        """Train some steps from the common start."""
        return sgd_visit(
            task.loss,
            self.local,
            start=lambda client: {"model": client.shared["start"]},
            end=lambda client, carry: ({"delta": tree.sub(carry["model"], client.shared["start"])}, client.own),
            phases=[(steps(self.settings.pretrain), lambda name: True)],
        )

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if clients and not bool((state["assignment"] >= 0).any()):
            state = self._find(state, fed)
        state = self._join(state, fed, [c for c in clients if int(state["assignment"][c]) < 0])
        known = [c for c in clients if int(state["assignment"][c]) >= 0]
        _, experts = self.train_clusters(state, fed, known, weight=self.settings.weight)
        return {**state, "experts": between(experts, self.settings.eta) if known else experts}

    def _find(self, state: Tree, fed: Fed) -> Tree:
        """Return the state with the groups that the first clients' directions make; as it was where fewer than K reply."""
        k = self.settings.clusters
        got = self._show(state, fed, fed.sample(min(self.settings.per_group * k, fed.population)))
        if len(got) < k:
            return state
        e = torch.as_tensor(embed(got.gram("delta").double().numpy(), k))
        labels = np.asarray(kmeans(e @ e.T, k, fed.key("groups")))
        members = np.stack([(labels == j) / max(1, (labels == j).sum()) for j in range(k)])
        means = got.linear("delta", torch.as_tensor(members))
        assignment = state["assignment"].clone()
        assignment[got.ids] = torch.as_tensor(labels, dtype=torch.int64)
        return {
            "experts": {str(j): tree.add(state["start"], d) for j, d in enumerate(means)},
            "assignment": assignment,
            "start": state["start"],
            "directions": tree.stack(means),
        }

    def _join(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Return the state in which newcomers have joined the group whose direction is nearest to theirs."""
        if not clients or not bool((state["assignment"] >= 0).any()):
            return state
        got = self._show(state, fed, clients)
        if not got.ids:
            return state
        directions = tree.unstack(state["directions"])
        length = torch.stack([tree.norm(d).double() for d in directions])
        cosines = (got.dot("delta", directions) / length.clamp(min=1e-30)).where(
            length > 0, -torch.inf
        )  # 0: found empty
        assignment = state["assignment"].clone()
        assignment[got.ids] = cosines.argmax(1)
        return {**state, "assignment": assignment}

    def _show(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Replies:
        return fed.ask(self.show, clients, shared={"start": state["start"]})


def embed(gram: np.ndarray, k: int) -> np.ndarray:
    """Return the cosines (m, k) of m vectors with their first k left singular vectors, from their inner products (m, m)."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    lengths = np.sqrt(np.maximum(gram.diagonal(), 1e-300))
    first = np.sqrt(np.maximum(values[::-1][:k], 0.0)) * vectors[:, ::-1][:, :k]
    return first / lengths[:, None]


def between(experts: Tree, eta: float) -> dict[str, Tree]:
    """Return the groups' models after the step between groups."""
    if not eta or len(experts) == 1:
        return dict(experts)
    b = {k: eta / float(tree.norm(e)) for k, e in experts.items()}
    out = {}
    for k, e in experts.items():
        others = [j for j in experts if j != k]
        mixed = e
        for j in others:
            mixed = tree.add(mixed, experts[j], b[j])
        out[k] = tree.scale(mixed, 1 / (1 + sum(b[j] for j in others)))
    return out
