"""CFL: one cluster that is cut in two wherever its members' updates pull apart, and cut again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import ANY, PARAMS, SCALAR, MethodSettings, Part, Visit, Wire, tree, visit
from rayfed.cluster import bipartition
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import Clustered, losses
from rayfed.visits import average, once
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Phase, Replies, Task, Tree
    from rayfed.config.schema import Config


class CFL(Clustered):
    """Sattler et al. 2020, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization Under Privacy
    Constraints" (1910.01991), recursive bipartition.

    Client i of cluster C: E epochs of SGD from c_C; sends D_i. Server, per cluster: c_C <- c_C + mean of D_i; before that,
    C is cut into C_1, C_2 by complete linkage on cos(D_i, D_j) iff ||mean D_i|| < eps_1, max ||D_i|| > eps_2, |C| > 2
    and round > min_round; then c_{C_k} <- c_C + mean of D_i over C_k, and c_C is kept as it was.
    Both halves get new ids, so an id always means the same cluster. The criterion's mean has the weights of the update's.
    Down: the client's model (P). Up: update (P). Kept at clients: nothing. At the server: leaves, their ancestors' models
    and ids, each client's node, the largest update norm.
    The paper asks every client in every round. Where some are absent, a cluster is judged by those who replied, and
    `absent` says what then: `choose` (ours) cuts it, and an absent member goes to the leaf below its cluster that has the
    least loss on its training data when it is next asked (down: the leaves, up: one int); `wait` cuts only clusters of
    which all members replied, and is refused where rounds are drawn. A held-out client is served by least loss.
    With `weight: examples` and no cut it is FedAvg to the bit.
    """

    class Settings(bipartition.Settings, MethodSettings):
        min_round: int = Field(5, ge=0, description="Last round in which no cluster is cut.")
        weight: Literal["one", "examples"] = Field("one", description="Weights of a mean: equal (paper) or not.")
        absent: Literal["choose", "wait"] = Field(
            "choose", description="What a cluster does with members that a round did not hear."
        )
        serve: Literal["leaf", "best_on_path"] = Field(
            "leaf", description="A client's model: its leaf, or the best on its validation data from root to leaf."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            **Clustered.wire.down,
            "leaves": Part(stack("K", PARAMS), note="for a client whose cluster was cut without it"),
            "below": Part(tensor("K", dtype="bool"), note="which of them are below its cluster"),
        },
        up={**Clustered.wire.up, "cluster": Part(tensor(dtype="int64"), note="the chosen one of `leaves`")},
        server={
            **Clustered.wire.server,
            "ancestors": Part(ANY, note="cluster id -> model when it was cut"),
            "parents": Part(tensor("M", dtype="int64"), note="parent of each cluster id, -1 for the first"),
            "largest": Part(SCALAR, note="largest norm of an update so far"),
        },
    )

    def check(self, config: Config) -> list[str]:
        found, s = [], self.settings
        drawn = config.per_round() < config.training_clients()
        if s.absent == "wait" and drawn:
            found.append(
                f"method.absent: wait found, but {config.per_round()} of {config.training_clients()} clients are asked in a "
                "round, so nearly no cluster would ever be cut; allowed: choose, or federation.per_round: null"
            )
        if s.serve == "best_on_path" and not config.federation.split.val:
            found.append("method.serve: best_on_path chooses by validation data, but federation.split.val is 0")
        return found

    def init(self, task: Task, key: int) -> Tree:
        return {
            **super().init(task, key),
            "assignment": torch.zeros(task.population, dtype=torch.int64),
            "ancestors": {},
            "parents": torch.tensor([-1]),
            "largest": torch.zeros((), dtype=torch.float64),
        }

    @visit
    def choose(self, task: Task) -> Visit:
        """Choose the leaf of least training loss below the client's cluster."""
        phase = losses(task)

        def enter(client: ClientContext, carry: Tree) -> Tree:
            assert phase.enter is not None
            return phase.enter(client._replace(shared={"experts": client.shared["leaves"]}), carry)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"cluster": least_of(carry, client.mine["below"])}, client.own

        return Visit(lambda client: {}, [phase._replace(enter=enter)], end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        state = self._choose_leaves(state, fed, clients)
        clients = tuple(c for c in clients if str(int(state["assignment"][c])) in state["experts"])
        got, experts = self.train_clusters(state, fed, clients, weight=self.settings.weight, keep="delta")
        return self._cut(state, fed, got, experts) if got.ids else {**state, "experts": experts}

    def _choose_leaves(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Let those of `clients` whose cluster was cut while they were away choose among the leaves below it; return the state."""
        leaves = sorted(state["experts"], key=int)
        assignment = state["assignment"].clone()
        away = {c: int(assignment[c]) for c in clients if str(int(assignment[c])) not in leaves}
        if not away:
            return state
        mine = {c: {"below": _below(state, k, leaves)} for c, k in away.items()}
        stacked = tree.stack([state["experts"][k] for k in leaves])
        chosen = fed.ask(self.choose, list(away), shared={"leaves": stacked}, mine=mine).gather("cluster")
        for c, at in chosen.items():
            assignment[c] = int(leaves[int(at)])
        return {**state, "assignment": assignment}

    def _cut(self, state: Tree, fed: Fed, got: Replies, experts: dict[str, Tree]) -> Tree:
        """Return the state after a round in which `experts` are the leaves' next models where none is cut."""
        s, n = self.settings, got.examples.numpy() if self.settings.weight == "examples" else np.ones(len(got))
        gram = got.gram("delta").double().numpy()
        largest = max(float(state["largest"]), float(np.sqrt(gram.diagonal().max())))
        at = state["assignment"][got.ids].numpy()
        assignment, parents = state["assignment"].clone(), state["parents"].tolist()
        cut: dict[str, Tree] = {}
        weights: list[np.ndarray] = []
        for k in sorted(state["experts"], key=int) if fed.round > s.min_round else ():
            rows = np.flatnonzero(at == int(k))
            if s.absent == "wait" and len(rows) < int((state["assignment"] == int(k)).sum()):
                continue
            halves = bipartition.bipartition(gram[np.ix_(rows, rows)], s, largest, n[rows])
            if halves is None:
                continue
            cut[k] = state["experts"][k]
            for half in (rows[halves == 0], rows[halves == 1]):
                assignment[[got.ids[i] for i in half]] = len(parents)
                parents.append(int(k))
                weights.append(np.where(np.isin(np.arange(len(n)), half), n, 0) / n[half].sum())
        if cut:
            means = got.linear("delta", torch.as_tensor(np.stack(weights)))
            first = len(parents) - len(means)
            experts = {k: e for k, e in experts.items() if k not in cut}
            experts |= {str(j): tree.add(cut[str(parents[j])], d) for j, d in enumerate(means, first)}
        return {
            "experts": experts,
            "assignment": assignment,
            "ancestors": {**state["ancestors"], **cut},
            "parents": torch.tensor(parents),
            "largest": torch.tensor(largest, dtype=torch.float64),
        }

    # serving: each client gets all models and a mask of those that may be its own
    def _served(self, state: Tree) -> dict[str, Tree]:
        """Return cluster id -> model; the deepest first, so that a client without validation data gets its leaf."""
        models = state["experts"] if self.settings.serve == "leaf" else {**state["ancestors"], **state["experts"]}
        return {k: models[k] for k in sorted(models, key=int, reverse=True)}

    def serve(self, state: Tree) -> Tree:
        return {"experts": tree.stack(list(self._served(state).values()))}

    def mine(self, state: Tree, client: int) -> Tree:
        served = list(self._served(state))
        if client >= len(state["assignment"]):
            return {"allowed": torch.ones(len(served), dtype=torch.bool)}
        at = int(state["assignment"][client])
        above = torch.tensor([int(k) in _path(state, at) for k in served])
        return {"allowed": above | _below(state, at, served)}

    def view(self, task: Task) -> Visit:
        phase: Phase = losses(task)
        if self.settings.serve == "best_on_path":
            phase = phase._replace(over=once("val"))

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"model": tree.pick(client.shared["experts"], least_of(carry, client.mine["allowed"]))}, client.own

        return Visit(lambda client: {}, [phase], end)

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in super().clusters(state).items() if str(k) in state["experts"]}


def least_of(carry: Tree, allowed: Tensor) -> Tensor:
    """Return the place of the model with the least mean loss among those `allowed` (K,), after the phase `losses`; 0-d."""
    return torch.where(allowed, average(carry)["loss"], torch.inf).argmin()


def _path(state: Tree, node: int) -> list[int]:
    """Return the ids of a cluster and of its ancestors, its own first."""
    path = []
    while node >= 0:
        path.append(node)
        node = int(state["parents"][node])
    return path


def _below(state: Tree, node: int, among: Sequence[Any]) -> Tensor:
    """Return which clusters of `among` are `node` or were cut out of it, (K,) bool."""
    return torch.tensor([node in _path(state, int(k)) for k in among])
