"""FeSEM: K centres; each client trains the centre nearest to its own last solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Visit, Wire, keys, tree, visit
from rayfed.cluster.kmeans import kmeans
from rayfed.lazy import F, torch
from rayfed.methods._bases.clustered import Clustered
from rayfed.wire import tensor

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree
    from rayfed.config.schema import Config


class FeSEM(Clustered):
    """Xie et al. 2021, "Multi-Center Federated Learning" (2005.01026): stochastic expectation maximisation of
    sum_i (n_i / n) min_k ||w_i - c_k||^2.

    E-step: a(i) = argmin_k ||w_i - c_k||, w_i the client's last solution, the common initial model before its first.
    Client i: w_i <- E epochs of SGD from c_{a(i)}; sends w_i - c_{a(i)}.
    M-step: c_k <- weighted mean of the w_i of the round's members; a centre without members stays.
    `seeding: solutions` (ours): all train one model until a round has K replies; its solutions are clustered by k-means++
    and Lloyd's steps, and the clusters' means are the first centres. `random`: centres are initial models, as published;
    while no client has a solution, all of them are nearest to the same centre.
    Down: the client's centre (P). Up: update (P), n_i. Kept at clients: nothing. At the server: K centres, each client's
    last solution (N P, here held with the client states: the E-step is computed there, and counts in no bytes) and a(i).
    With one centre it is FedAvg to the bit.
    """

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of centres, K.")
        seeding: Literal["solutions", "random"] = Field(
            "solutions", description="First centres: from clients' first solutions, or random models."
        )
        weight: Literal["examples", "one"] = Field(
            "examples", description="Weights of the objective and the means: by examples (paper), or equal (code)."
        )

    wire: ClassVar[Wire] = Wire(
        down=Clustered.wire.down,
        up={
            **Clustered.wire.up,
            "cluster": Part(tensor(dtype="int64"), note="a(i), found where w_i is held; nothing in a deployment"),
        },
        keep={"solution": Part(PARAMS, note="w_i, which the server of a deployment holds")},
        server=Clustered.wire.server,
    )

    def check(self, config: Config) -> list[str]:
        k, m = self.settings.clusters, config.per_round()
        if self.settings.seeding == "solutions" and k > m:
            return [
                f"method.clusters: {k} found, allowed with seeding solutions: at most the clients of a round ({m}); "
                "or method.seeding: random"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        experts = {"0": task.init_params(key)}
        if self.settings.seeding == "random":
            others = range(1, self.settings.clusters)
            experts |= {str(k): task.fresh_params(keys.key(key, 0, -1, f"expert {k}")) for k in others}
        return {**super().init(task, key), "experts": experts}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"solution": task.initial}

    @visit
    def train(self, task: Task) -> Visit:
        visit = super().train(task)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            parts, _ = visit.end(client, carry)
            return parts, {"solution": carry["model"]}

        return visit._replace(end=end)

    @visit
    def nearest(self, task: Task) -> Visit:
        """Run the E-step of one client."""

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own, centres = client.own["solution"], client.shared["experts"]
            gaps = [(centres[n] - w).square().flatten(1).sum(1) for n, w in own.items() if n not in task.buffers]
            return {"cluster": sum(gaps).argmin()}, client.own

        return Visit(lambda client: {}, (), end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if len(state["experts"]) < self.settings.clusters:
            return self._seed(state, fed, clients)
        clusters = dict.fromkeys(clients, 0)
        if len(state["experts"]) > 1 and clients:
            experts = tree.stack([state["experts"][k] for k in sorted(state["experts"], key=int)])
            found = fed.ask(self.nearest, clients, shared={"experts": experts}, metered=False)
            clusters = {c: int(k) for c, k in found.gather("cluster").items()}
        assignment = state["assignment"].clone()
        for c, k in clusters.items():
            assignment[c] = k
        state = {**state, "assignment": assignment}
        _, experts = self.train_clusters(state, fed, list(clusters), weight=self.settings.weight)
        return {**state, "experts": experts}

    def _seed(self, state: Tree, fed: Fed, clients: Sequence[int]) -> Tree:
        """Run a round of one centre, cut into K where it has the replies. Solutions of one start differ as updates do."""
        s, start = self.settings, state["experts"]["0"]
        assignment = state["assignment"].clone()
        assignment[list(clients)] = 0
        state = {**state, "assignment": assignment}
        got, experts = self.train_clusters(state, fed, clients, weight=s.weight, keep="delta")
        if len(got) >= s.clusters:
            n = got.examples if s.weight == "examples" else torch.ones_like(got.examples)
            labels = torch.as_tensor(kmeans(got.gram("delta"), s.clusters, fed.key("k-means"), weight=n.numpy()))
            member = F.one_hot(labels, s.clusters).T * n
            means = got.linear("delta", member / member.sum(1, keepdim=True))
            experts = {str(k): tree.add(start, d) for k, d in enumerate(means)}
            assignment[got.ids] = labels
        return {"experts": experts, "assignment": assignment}
