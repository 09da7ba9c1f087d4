"""FedDrift: clients whose data drift open clusters of their own, and clusters that fit one another's data merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Part, Visit, Wire, measure, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import Clustered
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from rayfed import Fed, Replies, Task, Tree


class FedDrift(Clustered):
    """Jothimurugesan et al. 2023, "Federated Learning under Distributed Concept Drift" (AISTATS, 2206.00799).

    A time step is `every` rounds. At its beginning each of the round's clients computes the losses of all K models on its training data: if
    the least one is above the loss of its own model at the end of the last step by more than `delta`, its data have drifted and it opens a
    cluster (`eager`, FedDrift-Eager: one for all that have); else it joins the cluster of the least loss. Then FedAvg in each cluster.
    At its end, with L_kl the loss of c_k on the rows of cluster l's clients, clusters merge, the closest first, while
        D(k, l) = max(L_kl - L_ll, L_lk - L_kk, 0) < delta;
    the merged model is the mean by their rows, its distance to others the larger one of both [inferred].
    A new cluster starts from the run's initial model, or from the client's last one (`start: cluster`) [inferred]. One cluster at first.
    Clusters that nobody is in stay, so that a concept may come back.
    Down: a cluster's model (P); at both ends of a time step all K (K P). Up: update (P), n_i; K losses and n_i. Kept at clients: nothing.
    At the server: K models, and of each client cluster and last loss. With a delta that nothing reaches it is FedAvg: to the
    bit in the first time step, then up to the order of batches in rounds that begin with losses.
    """

    class Settings(MethodSettings):
        every: int = Field(5, ge=1, description="Rounds of a time step.")
        delta: float = Field(
            0.5, gt=0, description="Rise of a client's loss that is drift, and distance within which clusters merge."
        )
        eager: bool = Field(
            False, description="One new cluster for all clients that drift at once, in place of one each."
        )
        start: Literal["initial", "cluster"] = Field(
            "initial",
            description="First model of a new cluster: the run's initial one, or that of the client's cluster.",
        )
        weight: Literal["examples", "one"] = Field("examples", description="Weights of a cluster's mean.")

    wire: ClassVar[Wire] = Wire(
        down={
            **Clustered.wire.down,
            "models": Part(stack("K", PARAMS), note="all K models, at both ends of a time step"),
        },
        up={**Clustered.wire.up, "losses": Part(tensor("K"), note="of each model"), "n": Part(SCALAR, note="examples")},
        server={
            **Clustered.wire.server,
            "initial": Part(PARAMS),
            "last": Part(tensor("N"), note="loss of each client's model at the end of the last time step"),
            "heard": Part(tensor("N", dtype="int64"), note="the round of that, 0 before"),
            "next": Part(tensor(dtype="int64"), note="id of the next cluster"),
        },
    )
    logs: ClassVar = {"clusters/drifted": ("clients whose loss has risen by more than delta", "clients")}

    def init(self, task: Task, key: int) -> Tree:
        model, n = task.init_params(key), task.population
        return {
            "experts": {"0": model},
            "assignment": torch.zeros(n, dtype=torch.int64),
            "initial": model,
            "last": torch.zeros(n, dtype=task.dtype),
            "heard": torch.zeros(n, dtype=torch.int64),
            "next": torch.tensor(1),
        }

    @visit
    def score(self, task: Task) -> Visit:
        """Send the mean loss of each model on the client's training data."""

        def rows(models: Tree, batch: Any) -> Tree:
            count = len(tree.values(models)[0])
            return {"losses": torch.stack([task.loss(tree.pick(models, k), batch) for k in range(count)], -1)}

        def zero(client: Any) -> Tree:
            count = len(tree.values(client.shared["models"])[0])
            return {"losses": torch.zeros(count, dtype=task.dtype, device=task.device)}

        return measure(rows, zero, model=lambda client: client.shared["models"])

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        every, clients = self.settings.every, fed.sample()
        if fed.round > 1 and (fed.round - 1) % every == 0:
            state = self._detect(state, fed, clients)
        _, experts = self.train_clusters(state, fed, clients, weight=self.settings.weight)
        state = {**state, "experts": experts}
        return self._settle(state, fed, clients) if fed.round % every == 0 else state

    def _score(self, state: Tree, fed: Fed, clients: Sequence[int]) -> tuple[list[str], Replies]:
        """Return the clusters' ids, and the replies of clients with the losses of their models, in this order."""
        ids = sorted(state["experts"], key=int)
        models = tree.stack([state["experts"][k] for k in ids])
        return ids, fed.ask(self.score, clients, shared={"models": models})

    def _detect(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Return the state in which clients have joined the cluster that fits them, or opened one."""
        s = self.settings
        ids, got = self._score(state, fed, clients)
        if not got.ids:
            return state
        assignment, experts, fresh = state["assignment"].clone(), dict(state["experts"]), int(state["next"])
        best, least = got.stacked("losses").min(1).indices.tolist(), got.stacked("losses").min(1).values
        drifted = 0
        for c, k, loss in zip(got.ids, best, least, strict=True):
            if not (int(state["heard"][c]) and float(loss) > float(state["last"][c]) + s.delta):
                assignment[c] = int(ids[k])
                continue
            if not (s.eager and drifted):
                old = state["experts"][str(int(assignment[c]))]
                experts[str(fresh)] = state["initial"] if s.start == "initial" else old
                fresh += 1
            assignment[c] = fresh - 1
            drifted += 1
        fed.log("clusters/drifted", drifted)
        return {**state, "assignment": assignment, "experts": experts, "next": torch.tensor(fresh)}

    def _settle(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Return the state after clusters have merged, with the loss of each client's model."""
        ids, got = self._score(state, fed, clients)
        if not got.ids:
            return state
        losses, n = got.stacked("losses"), got.stacked("n").double().numpy()
        place = np.array([ids.index(str(int(state["assignment"][c]))) for c in got.ids])
        last, heard = state["last"].clone(), state["heard"].clone()
        at = torch.tensor(got.ids)
        last[at] = losses[torch.arange(len(at)), torch.as_tensor(place)].to(last.dtype)
        heard[at] = fed.round
        there = sorted(set(place.tolist()))
        rows = np.array([n[place == k].sum() for k in there])
        of = np.stack([n[place == k] @ losses.double().numpy()[place == k] for k in there], 1) / rows
        groups = merged(distances(of[there]), rows, self.settings.delta)
        assignment, experts = state["assignment"].clone(), dict(state["experts"])
        for group in groups:
            first, *others = (ids[there[g]] for g in group)
            if not others:
                continue
            w = torch.as_tensor(rows[group] / rows[group].sum())[None]
            models = tree.stack([experts[k] for k in (first, *others)])
            experts[first] = tree.map(lambda x: x[0], tree.combine(w, models))
            for k in others:
                del experts[k]
                assignment[assignment == int(k)] = int(first)
        return {**state, "experts": experts, "assignment": assignment, "last": last, "heard": heard}


def distances(losses: np.ndarray) -> np.ndarray:
    """Return D (K, K) of losses L (K, K), L_kl that of model k on cluster l's rows: max(L_kl - L_ll, L_lk - L_kk, 0)."""
    rise = losses - np.diag(losses)[None]
    made: np.ndarray = np.maximum(np.maximum(rise, rise.T), 0.0)
    return made


def merged(distance: np.ndarray, rows: np.ndarray, delta: float) -> list[list[int]]:
    """Return the groups of clusters that become one: the closest two merge while they are closer than delta, and of what has merged the
    distance to others is the larger one; rows: of each cluster."""
    groups, d = [[k] for k in range(len(rows))], distance.astype(np.float64).copy()
    np.fill_diagonal(d, np.inf)
    while len(groups) > 1:
        i, j = sorted(np.unravel_index(int(d.argmin()), d.shape))
        if d[i, j] >= delta:
            break
        groups[i] += groups.pop(j)
        d[i] = d[:, i] = np.maximum(d[i], d[j])
        d = np.delete(np.delete(d, j, 0), j, 1)
        d[i, i] = np.inf
    return groups
