"""CFLHKD: cluster models at the edge, a global one at the cloud, and models of the other level as teachers of the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Need, Part, Phase, Wire, cluster, mean, sgd_visit, stack, tensor, tree, visit
from rayfed.distill import ensemble
from rayfed.lazy import F, torch
from rayfed.methods._bases.finds_clusters import FindsClusters
from rayfed.task import needs_classes
from rayfed.visits import accumulate, average, once

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.partition import Federation


class CFLHKD(FindsClusters):
    """Ahmad et al. 2025, "Clustered Federated Learning with Hierarchical Knowledge Distillation" (2512.10443). A reconstruction: only
    the abstract and reviews were readable, which name the two levels, teachers both ways and clusters by cosine of updates. All
    equations are [inferred], each a switch.

    Clustering rounds (the first, and every `recluster_every`-th after it): all clients train w_g as in FedAvg, the server clusters
    what they sent (any of `rayfed.cluster`), w_k <- w_g + mean of the members' updates, and w_g <- w_g + mean of all.
    Other rounds, client i of cluster k: from w_k, SGD on (1 - lam) CE(w) + lam tau^2 sum_j beta_j KL(q(w_j) || q(w)) over its own rows,
    q the softmax at temperature tau; teachers j: w_g (`global`), or w_g and the other clusters' models (`all`), with equal beta or
    softmax of -(teacher's mean loss on the client's training data) / warmth, measured before training.
    Edge: w_k <- w_k + sum_i (n_i / n_k) u_i over the members who replied. Cloud, every `cloud_every` rounds: w_g <- sum_k p_k w_k,
    p_k = n_k / n over all members seen so far; then w_k <- w_k + alpha (w_g - w_k).
    A client that first takes part in another round joins the cluster whose model has the least loss on its training data [ours]; one
    that never took part is served w_g.
    With `lam: 0` and `alpha: 0` it is FedAvg inside the clusters; with one cluster and `lam: 0` FedAvg to the bit.
    Down: w_k (P), with lam also w_g (P), or all K + 1 models; to newcomers the K models; in clustering rounds w_g, and what the clusterer
    asks for. Up: update (P), n_i; in clustering rounds class counts (C ints) and a signature (q).
    Kept at clients: nothing. At the server: w_g, K models, ids, n_i.
    """

    class Settings(FindsClusters.Settings):
        needs: ClassVar = {
            "weigh": (Need("teachers", ("all",)),),
            "warmth": (Need("teachers", ("all",)), Need("weigh", ("loss",))),
        }

        lam: float = Field(0.3, ge=0, le=1, description="Weight of the teachers in a client's loss; 0 has none.")
        tau: float = Field(2.0, gt=0, description="Distillation temperature.")
        teachers: Literal["global", "all"] = Field(
            "global", description="Who teaches a client: the global model, or it and the other clusters' models."
        )
        weigh: Literal["uniform", "loss"] = Field(
            "uniform", description="Teachers count alike, or by their loss on the client's training data."
        )
        warmth: float = Field(1.0, gt=0, description="Temperature of teachers' weights by loss, nats.")
        alpha: float = Field(0.1, ge=0, le=1, description="Share of the way that cluster models go to the global one.")
        cloud_every: int = Field(1, ge=1, description="Rounds from one global model to the next.")
        recluster_every: int | None = Field(
            None, ge=1, description="Rounds from one clustering to the next; null: once."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            **FindsClusters.wire.down,
            "model": Part(PARAMS, note="w_g"),
            "experts": Part(stack("K", PARAMS), note="to newcomers, and for clusterers that read losses"),
            "own": Part(stack("K", PARAMS), note="w_k of the client's cluster", routed=True),
            "teachers": Part(stack("K", PARAMS), note="all w_k and w_g; only with teachers: all"),
            "place": Part(tensor(dtype="int64"), note="which row of these stacks is the client's own"),
        },
        up=FindsClusters.wire.up,
        server={
            **FindsClusters.wire.server,
            "model": Part(PARAMS, note="w_g"),
            "examples": Part(tensor("N"), note="n_i of who replied so far, 0 of others"),
        },
    )

    def init(self, task: Task, key: int) -> Tree:
        return {**super().init(task, key), "examples": torch.zeros(task.population, dtype=torch.float64)}

    @visit
    def train_cluster(self, task: Task) -> Visit:
        """Train the model of the client's cluster, with teachers."""
        s = self.settings

        def start(client: ClientContext) -> Tree:
            place, everyone = client.mine["place"], client.shared.get("teachers")
            own = tree.pick(client.shared["own"] if everyone is None else everyone, place)
            carry = {"model": own, "start": own}
            if s.lam:
                alone = tree.map(lambda x: x[None], client.shared["model"]) if everyone is None else everyone
                carry |= {"teachers": alone, "place": place}
            return carry

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"delta": tree.sub(carry["model"], carry["start"])}, client.own

        if not s.lam:
            return sgd_visit(task.loss, self.local, start=start, end=end)
        before = [self._measure_teachers(task)] if s.weigh == "loss" else []
        return sgd_visit(task.loss, self.local, start=start, end=end, before=before, objective=self._objective(task))

    def _measure_teachers(self, task: Task) -> Phase:
        """Return a phase that sums the training losses of each of carry["teachers"]."""

        def enter(client: ClientContext, carry: Tree) -> Tree:
            zero = torch.zeros(len(tree.values(carry["teachers"])[0]), dtype=task.dtype, device=task.device)
            return {**carry, "sum": {"losses": zero}, "n": zero.sum()}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            rows = [task.loss(tree.pick(carry["teachers"], j), batch) for j in range(len(carry["sum"]["losses"]))]
            return {**carry, **accumulate(carry, {"losses": torch.stack(rows, -1)}, batch["w"])}

        return Phase(once("train"), step, enter, counts=False)

    def _objective(self, task: Task) -> Any:
        s = self.settings

        def objective(params: Tree, carry: Tree, batch: Any, key: Any) -> Tensor:
            teachers = carry["teachers"]
            with task.training(batch, key):
                logits = task.apply(params, batch["x"])
            j = len(tree.values(teachers)[0])
            apart = [ensemble.kl(task.apply(tree.pick(teachers, i), batch["x"]), logits, s.tau) for i in range(j)]
            losses = average(carry)["losses"] if s.weigh == "loss" else torch.zeros(j, dtype=logits.dtype)
            own = carry["place"] if s.teachers == "all" else None
            beta = shares(losses.to(logits), own, s.warmth)
            of_labels = task.cross_entropy(logits, batch["y"], key)
            return (1 - s.lam) * of_labels + s.lam * (beta @ torch.stack(apart))

        return objective

    # the server's part
    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        every = self.settings.recluster_every
        due = not state["experts"] or (every is not None and (fed.round - 1) % every == 0)
        state = self._cluster_round(state, fed) if due else self._edge_round(state, fed)
        return state if fed.round % self.settings.cloud_every else self._cloud(state)

    def _cluster_round(self, state: Tree, fed: Fed) -> Tree:
        """Train w_g at all clients and make the clusters' models from it anew."""
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"), keep="delta")
        if not got.ids:
            return state
        start, examples = state["model"], state["examples"].index_put((torch.tensor(got.ids),), got.examples)
        labels, named = self.find_clusters(state, got, fed, start)
        state = {**state, "model": tree.add(start, got.folded["delta"]), "examples": examples}
        placed = torch.as_tensor(labels != cluster.MISSING)
        if not placed.any():
            return state
        member = F.one_hot(torch.as_tensor(labels).clamp(min=0)).T.double() * placed  # (K, n)
        if len(member) == 1 and placed.all():
            moved = [got.folded["delta"]]
        else:
            moved = got.linear("delta", member * got.examples / (member @ got.examples)[:, None])
        experts = [tree.add(start, d) for d in moved]
        ids = named or self.match_ids(state, got.ids, labels, experts)
        known, assignment = self.remember(state, got.ids, labels, ids, experts)
        return {**state, "experts": known, "assignment": assignment}

    def _edge_round(self, state: Tree, fed: Fed) -> Tree:
        """Train the clusters' models at their members."""
        s, ids = self.settings, sorted(state["experts"], key=int)
        state, clients = self._join(state, fed, fed.sample())
        places = {c: {"place": torch.tensor(ids.index(str(int(state["assignment"][c]))))} for c in clients}
        models = [state["experts"][k] for k in ids]
        if s.lam and s.teachers == "all":
            shared = {"teachers": tree.stack([*models, state["model"]])}
        else:
            shared = {"own": tree.stack(models), **({"model": state["model"]} if s.lam else {})}
        got = fed.ask(self.train_cluster, clients, shared=shared, mine=places, fold=mean("delta", by="place"))
        if not got.ids:
            return state
        moved = got.folded["delta"]
        experts = {
            k: tree.add(m, moved[i]) if i in moved else m for i, (k, m) in enumerate(zip(ids, models, strict=True))
        }
        examples = state["examples"].index_put((torch.tensor(got.ids),), got.examples)
        return {**state, "experts": experts, "examples": examples}

    def _join(self, state: Tree, fed: Fed, clients: Sequence[int]) -> tuple[Tree, list[int]]:
        """Let those without a cluster choose one; return the state and the clients that have one."""
        new = [c for c in clients if state["assignment"][c] < 0]
        assignment, ids = state["assignment"].clone(), sorted(state["experts"], key=int)
        if len(ids) == 1:
            assignment[new] = int(ids[0])
        elif new:
            known = {k: state["experts"][k] for k in ids}
            for c, told in fed.ask(self.score, new, shared={"experts": known}).gather("losses").items():
                assignment[c] = int(ids[int(told.argmin())])
        return {**state, "assignment": assignment}, [c for c in clients if assignment[c] >= 0]

    def _cloud(self, state: Tree) -> Tree:
        """Make the global model of the clusters' and draw these to it."""
        if not state["experts"]:
            return state
        ids = sorted(state["experts"], key=int)
        n = torch.stack([state["examples"][state["assignment"] == int(k)].sum() for k in ids])
        models = [state["experts"][k] for k in ids]
        top = merged(models, n / n.sum())
        drawn = [tree.add(m, tree.sub(top, m), self.settings.alpha) for m in models]
        return {**state, "model": top, "experts": dict(zip(ids, drawn, strict=True))}

    def fits(self, federation: Federation) -> list[str]:
        found = super().fits(federation)
        return found or (needs_classes(federation, "cflhkd compares logits of classes") if self.settings.lam else [])


def merged(models: Sequence[Tree], p: Tensor) -> Tree:
    """Return sum_k p_k w_k of K models and shares p (K,)."""
    top = tree.scale(models[0], float(p[0]))
    for m, share in zip(models[1:], p[1:].tolist(), strict=True):
        top = tree.add(top, m, share)
    return top


def shares(losses: Tensor, own: Tensor | None, warmth: float) -> Tensor:
    """Return the teachers' weights (J,), softmax of -losses / warmth, which sum to 1; own: the place of the one that does not teach."""
    scores = -losses / warmth
    if own is not None:
        scores = torch.where(torch.arange(len(losses), device=losses.device) == own, -torch.inf, scores)
    return torch.softmax(scores, 0)
