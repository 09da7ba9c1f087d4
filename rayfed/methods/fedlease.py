"""FedLEASE: experts of LoRA for clusters of clients, as many as their adapters show; each client mixes as many of them as it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import ANY, PARAMS, MethodSettings, Part, Visit, Wire, keys, mean, sgd_visit, tree, visit
from rayfed.adapters import lora
from rayfed.cluster import canonical
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import least, losses
from rayfed.methods._bases.over_lora import FACTORS, OverLoRA, factors
from rayfed.wire import params_of, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree


class FedLEASE(OverLoRA):
    """Wang et al. 2025, "Adaptive LoRA Experts Allocation and Selection for Federated Fine-Tuning" (NeurIPS 2025, 2509.15087), from
    descriptions of its formulas; its code was not read.

    Round 1: every client that is there trains an adapter from the run's first one. Server: d(i, j) = mean over layers of 1 - cos(B_i,
    B_j); agglomerative clustering with average linkage into the number M of clusters, 2 to `most`, of the largest silhouette; expert j =
    the mean of the adapters of cluster j, each factor by itself. From then on, layer at a client of cluster j, for each token h:
        W h + sum over the M largest of 2 M - 1 routes t of omega_t s B_e(t) A_e(t) h, omega their softmax, of logits G h, G (2 M - 1, n);
        routes 1 .. M all lead to the client's own expert, each other one to one of the others: so the own one is always among them, and
        how many others are is the client's choice.
    It trains its expert and G, the others held. Server: means of expert and G within each cluster, of the head over all.
    `most: 1` is FedIT. Ours: G is drawn evenly within 1 / sqrt(n) for each cluster; the head, which language models lack, is averaged over
    all clients; a client without a cluster (held out, or lost in round 1) is served that of the expert with the least loss on its rows.
    Down: M experts, G of the own cluster, head; in round 1 the first adapter. Up: the change of expert, G and head, n_i.
    Kept at clients: nothing. At the server: experts, G of each cluster, head, each client's cluster.
    """

    one_rank = "experts stand side by side in every layer"

    class Settings(MethodSettings):
        most: int = Field(4, ge=1, description="Most experts; 1: FedIT.")
        weight: Literal["examples", "one"] = Field("examples", description="Weights of means: by examples, or equal.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="the first adapter and head, in round 1"),
            "experts": Part(ANY, note="A (M, r, n), B (M, m, r) of each layer"),
            "gates": Part(ANY, note="G of each cluster; a deployment sends the own one"),
            "head": Part(params_of("head")),
            "place": Part(tensor(dtype="int64"), note="the client's cluster; nothing in a deployment"),
        },
        up={
            "trained": Part(PARAMS, note="the change in round 1"),
            "delta": Part(FACTORS, update=True),
            "gate": Part(ANY, note="change of G"),
            "head_delta": Part(params_of("head"), update=True),
        },
        server={
            "experts": Part(ANY, note="A (M, r, n), B (M, m, r) of each layer"),
            "gates": Part(ANY, note="(M, 2 M - 1, n) of each layer"),
            "head": Part(params_of("head")),
            "assignment": Part(tensor("N", dtype="int64"), note="-1 without a cluster"),
        },
    )
    universal: ClassVar[str | None] = None
    no_rule = "adapters are clustered, and averaged within clusters"

    def init(self, task: Task, key: int) -> Tree:
        first = task.init_params(key)
        return {
            "experts": tree.stack([factors(first)]),
            "gates": gates(task, 1, key),
            "head": {n: first[n] for n in task.head},
            "assignment": torch.full((task.population,), -1),
        }

    @visit
    def warm(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"trained": tree.sub(carry["model"], client.shared["model"])}, client.own

        return sgd_visit(task.loss, self.local, end=end)

    @visit
    def train(self, task: Task) -> Visit:
        mixture = task.read_by(lambda model, x: self.logits(task, model, x))

        def start(client: ClientContext) -> Tree:
            return served(client.shared, client.mine["place"])

        def begin(client: ClientContext) -> Tree:
            made = start(client)
            return {"model": {n: made[n] for n in ("own", "gate", "head")}, "others": made["others"]}

        def objective(params: Tree, carry: Tree, batch: Any, key: Any) -> Tensor:
            return mixture.loss({**params, "others": carry["others"]}, batch, key)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            was, now = start(client), carry["model"]
            moved = {n: tree.sub(now[n], was[n]) for n in ("own", "gate", "head")}
            return {"delta": moved["own"], "gate": moved["gate"], "head_delta": moved["head"]}, client.own

        made = sgd_visit(task.loss, self.local, start=begin, objective=objective, end=end)
        return made._replace(local=lambda carry: {**carry["model"]["own"], **carry["model"]["head"]})

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if bool((state["assignment"] < 0).all()):
            return self._allocated(state, fed, task)
        weight = self.settings.weight
        mine = {c: {"place": state["assignment"][c]} for c in fed.sample() if int(state["assignment"][c]) >= 0}
        folds = [mean("delta", weight, "place"), mean("gate", weight, "place"), mean("head_delta", weight)]
        shared = {n: state[n] for n in ("experts", "gates", "head")}
        got = fed.ask(self.train, tuple(mine), shared=shared, mine=mine, fold=folds)
        if not got.ids:
            return state
        number = len(tree.values(state["experts"])[0])
        zero = {n: tree.zeros(tree.pick(state[n], 0)) for n in ("experts", "gates")}
        moves = {
            n: [got.folded[p].get(k, zero[n]) for k in range(number)]
            for n, p in (("experts", "delta"), ("gates", "gate"))
        }
        return {
            "experts": tree.add(state["experts"], tree.stack(moves["experts"])),
            "gates": tree.add(state["gates"], tree.stack(moves["gates"])),
            "head": tree.add(state["head"], got.folded["head_delta"]),
            "assignment": state["assignment"],
        }

    def _allocated(self, state: Tree, fed: Fed, task: Task) -> Tree:
        """Return the state with an expert for each cluster of the clients' first adapters."""
        first = {**tree.pick(state["experts"], 0), **state["head"]}
        first = {n: first[n] for n in task.params_like}
        got = fed.ask(self.warm, fed.sample(fed.population), shared={"model": first})
        if not got.ids:
            return state
        trained = tree.map(lambda p, d: p + d, first, got.stacked("trained"))
        b = [trained[pair.b] for pair in lora.pairs(first)]
        labels = torch.as_tensor(clusters_of(distances(b), self.settings.most))
        n = got.examples if self.settings.weight == "examples" else torch.ones_like(got.examples)
        member = torch.nn.functional.one_hot(labels).T * n
        assignment = state["assignment"].clone()
        assignment[list(got.ids)] = labels
        means = tree.combine(member / member.sum(1, keepdim=True), trained)
        head = tree.pick(tree.combine((n / n.sum())[None], {h: trained[h] for h in task.head}), 0) if task.head else {}
        return {
            "experts": factors(means),
            "gates": gates(task, len(member), fed.key("routes")),
            "head": head,
            "assignment": assignment,
        }

    def serve(self, state: Tree) -> Tree:
        return {n: state[n] for n in ("experts", "gates", "head")}

    def mine(self, state: Tree, client: int) -> Tree:
        known = client < len(state["assignment"])
        return {"place": state["assignment"][client] if known else torch.tensor(-1)}

    def view(self, task: Task) -> Visit:
        """Build the mixture of the client's cluster, or of the expert that is best on its rows."""
        phase = losses(task)
        inner = phase.enter
        assert inner is not None

        def enter(client: ClientContext, carry: Tree) -> Tree:
            number = len(tree.values(client.shared["experts"])[0])
            head = {n: p[None].expand(number, *p.shape) for n, p in client.shared["head"].items()}
            whole = {**client.shared["experts"], **head}
            return inner(client._replace(shared={"experts": {n: whole[n] for n in task.params_like}}), carry)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            place = torch.where(client.mine["place"] >= 0, client.mine["place"], least(carry))
            return {"model": served(client.shared, place)}, client.own

        return Visit(lambda client: {}, [phase._replace(enter=enter)], end)

    def logits(self, task: Task, model: Tree, x: Tensor) -> Tensor:
        own, others = model["own"], model["others"]
        number = 1 + len(tree.values(others)[0])
        params: dict[str, Any] = {**model["head"]}
        hooks = []
        for n in lora.pairs(own):
            params[n.a] = torch.cat([own[n.a], others[n.a].flatten(0, 1)])
            params[n.b] = torch.cat([own[n.b], others[n.b].movedim(0, 1).flatten(1)], 1)
            layer = task.layer(n.a.removesuffix(".weight"))
            hooks.append(layer.register_forward_hook(mixing(model["gate"][n.a], number)))
        try:
            return task.apply(params, x)
        finally:
            for h in hooks:
                h.remove()

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in enumerate(state["assignment"].tolist()) if k >= 0}


def gates(task: Task, number: int, key: int) -> Tree:
    """Return G (M, 2 M - 1, n) of each layer for M clusters, even within 1 / sqrt(n)."""
    out = {}
    for i, n in enumerate(lora.pairs(task.params_like)):
        like = task.params_like[n.a]
        shape = (number, 2 * number - 1, like.shape[1])
        u = keys.uniform(torch.tensor(keys.key(key, 0, i, "route")), shape, task.dtype)
        out[n.a] = ((2 * u - 1) / like.shape[1] ** 0.5).to(like.device)
    return out


def served(shared: Tree, place: Tensor) -> Tree:
    """Return a client's mixture: its own expert, the others in their order, its cluster's G, and the head."""
    number = len(tree.values(shared["experts"])[0])
    order = torch.arange(number - 1, device=place.device)
    order = order + (order >= place).long()
    return {
        "own": tree.pick(shared["experts"], place),
        "others": tree.map(lambda x: x[order], shared["experts"]),
        "gate": tree.pick(shared["gates"], place),
        "head": shared["head"],
    }


def routed(logits: Tensor, number: int) -> Tensor:
    """Return the weights of M experts, own first, (.., M), of logits (.., 2 M - 1): softmax over the M largest; the first M routes are
    one."""
    rank = torch.argsort(logits, dim=-1, descending=True, stable=True).argsort(-1)
    omega = torch.softmax(torch.where(rank < number, logits, -torch.inf), -1)
    return torch.cat([omega[..., :number].sum(-1, keepdim=True), omega[..., number:]], -1)


def mixing(gate: Tensor, number: int) -> Any:
    """Return a forward hook on A (M r, n) that weighs the parts of its output by `routed(G h)`, G (2 M - 1, n)."""

    def hook(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        weights = routed(args[0].to(gate.dtype) @ gate.T, number).to(out.dtype)
        return (out.unflatten(-1, (number, -1)) * weights[..., None]).flatten(-2)

    return hook


def distances(b: list[Tensor]) -> np.ndarray:
    """Return d (n, n), the mean over layers of 1 - cosine of clients' B (n, m, r)."""
    flat = [torch.nn.functional.normalize(x.flatten(1).double(), dim=1, eps=1e-30) for x in b]
    d = torch.stack([1 - f @ f.T for f in flat]).mean(0).clamp(min=0).fill_diagonal_(0)
    return np.asarray((d + d.T).cpu() / 2)


def clusters_of(d: np.ndarray, most: int) -> np.ndarray:
    """Return labels (n,) from 0: average linkage into the number of clusters, 2 to `most`, of the largest silhouette; the fewest of equal
    ones, and one cluster of fewer than three clients."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    best, labels = -np.inf, np.zeros(len(d), np.int64)
    for k in range(2, min(most, len(d) - 1) + 1):
        found = AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(d)
        score = silhouette_score(d, found, metric="precomputed")
        if score > best:
            best, labels = score, found
    return canonical(labels)
