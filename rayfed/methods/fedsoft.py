"""FedSoft: clients belong to several clusters at once, by the shares of their examples that each cluster's model fits best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Visit, Wire, keys, measure, sgd_visit, tree, visit
from rayfed.lazy import F, torch
from rayfed.methods._bases.clustered import least, losses
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree


class FedSoft(Method):
    """Ruan and Joe-Wong 2022, "FedSoft: Soft Clustered Federated Learning with Proximal Local Updating" (2112.06053).

    Every `every` rounds, and before a client's first: u_ik = share of i's training examples whose loss is least under c_k, at least
    `floor`. Client i: w_i minimises F_i(w) + (lambda / 2) sum_k u_ik ||w - c_k||^2 by SGD, one model for all clusters; sends its change.
    Server: of the round's clients, cluster k takes some with probability v_ik = u_ik n_i / sum_j u_jk n_j, as many as the round has,
    with replacement; c_k <- the mean of the w_i that it took. `selection: weighted` (ours) takes the expectation, sum_i v_ik w_i.
    SGD begins at sum_k u_ik c_k / sum_k u_ik (ours), which is what K = 1 needs: that is FedAvg under `weighted` and lambda = 0.
    Served: w_i, which stays at the client; to a client that never trained, the c_k with the least loss on its training data.
    Down: K models (K P), for the shares and for the pull. Up: the change of w_i (P), n_i; K shares where they are refreshed.
    Kept at client i: w_i (P), and whether it has one. At the server: K models, all u_ik. The K models start from different draws.
    """

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of clusters, K.")
        lam: float = Field(0.1, ge=0, description="Strength lambda of the pull towards the clusters' models.")
        every: int = Field(2, ge=1, description="Rounds between two estimates of the shares (the paper's tau).")
        floor: float = Field(1e-4, ge=0, le=1, description="Least share of a client in a cluster (the paper's sigma).")
        selection: Literal["drawn", "weighted"] = Field(
            "drawn", description="Clients of a cluster's mean: drawn, or all by weight."
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "experts": Part(stack("K", PARAMS), note="all K models"),
            "shares": Part(tensor("K"), note="u_ik"),
        },
        up={
            "delta": Part(PARAMS, update=True, note="w_i minus what it began at"),
            "counts": Part(tensor("K"), note="examples that each model fits best"),
            "n": Part(SCALAR, note="examples"),
        },
        keep={"w": Part(PARAMS, private=True), "visited": Part(SCALAR, private=True)},
        server={
            "experts": Part(stack("K", PARAMS)),
            "shares": Part(tensor("N", "K"), note="u_ik, -1 before the first estimate"),
        },
    )
    universal: ClassVar[str | None] = None
    no_rule = "each cluster gets another mixture of the updates"

    def init(self, task: Task, key: int) -> Tree:
        k = self.settings.clusters
        others = [task.fresh_params(keys.key(key, 0, -1, f"expert {i}")) for i in range(1, k)]
        return {
            "experts": tree.stack([task.init_params(key), *others]),
            "shares": torch.full((task.population, k), -1.0, dtype=task.dtype),
        }

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"w": tree.zeros(task.params_like), "visited": torch.zeros((), dtype=task.dtype)}

    @visit
    def estimate(self, task: Task) -> Visit:
        """Count the client's training examples that each model fits best."""
        k = self.settings.clusters

        def best(models: Tree, batch: Any) -> Tree:
            rows = torch.stack([task.loss(tree.pick(models, i), batch) for i in range(k)], -1)
            return {"counts": F.one_hot(rows.argmin(-1), k).to(rows.dtype)}

        return measure(
            best,
            lambda client: {"counts": torch.zeros(k, dtype=task.dtype, device=task.device)},
            reduce="sum",
            model=lambda client: client.shared["experts"],
        )

    @visit
    def train(self, task: Task) -> Visit:
        lam = self.settings.lam

        def start(client: ClientContext) -> Tree:
            begin = mixture(client.mine["shares"], client.shared["experts"])
            mass = client.mine["shares"].sum()
            return {"model": begin, "anchor": begin, **({"mass": mass} if lam else {})}

        def pull(gradient: Tree, carry: Tree) -> Tree:
            # sum_k u_k (w - c_k) = mass (w - sum_k u_k c_k / mass)
            return tree.add(gradient, tree.sub(carry["model"], carry["anchor"]), lam * carry["mass"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            own = {"w": carry["model"], "visited": torch.ones_like(client.own["visited"])}
            return {"delta": tree.sub(carry["model"], carry["anchor"])}, own

        return sgd_visit(task.loss, self.local, start=start, hook=pull if lam else None, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients, shares = fed.sample(), state["shares"].clone()
        again = (fed.round - 1) % self.settings.every == 0
        new = [c for c in clients if again or float(shares[c, 0]) < 0]
        if new:
            got = fed.ask(self.estimate, new, shared={"experts": state["experts"]})
            if got.ids:
                found = got.stacked("counts") / got.stacked("n")[:, None].clamp(min=1)
                shares[got.ids] = found.clamp(min=self.settings.floor)
        known = [c for c in clients if float(shares[c, 0]) >= 0]
        mine = {c: {"shares": shares[c]} for c in known}
        got = fed.ask(self.train, known, shared={"experts": state["experts"]}, mine=mine)
        if not got.ids:
            return {**state, "shares": shares}
        return {"experts": self._means(state["experts"], shares[got.ids], got, fed), "shares": shares}

    def _means(self, experts: Tree, shares: Tensor, got: Replies, fed: Fed) -> Tree:
        """Return the clusters' next models: c_k + sum_i W_ki (w_i - c_k), w_i = what client i began at + its change."""
        v = shares.double().T * got.examples
        mass = v.sum(1, keepdim=True)
        v = v / mass.clamp(min=1e-300)  # a cluster that fits nobody stays
        if self.settings.selection == "drawn":
            rng, n = keys.numpy(fed.key("clients of clusters")), len(got)
            drawn = [rng.multinomial(n, row / row.sum()) if row.any() else row for row in v.numpy()]
            v = torch.as_tensor(np.stack(drawn) / n)
        began = shares.double() / shares.double().sum(1, keepdim=True)
        between = torch.where(mass > 0, v @ began - torch.eye(len(v), dtype=torch.float64), 0.0)
        moved = tree.stack(got.linear("delta", v))
        return tree.add(tree.add(experts, tree.combine(between, experts)), moved)

    def serve(self, state: Tree) -> Tree:
        return {"experts": state["experts"]}

    def view(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            best = tree.pick(client.shared["experts"], least(carry))
            return {"model": tree.where(client.own["visited"] > 0, client.own["w"], best)}, client.own

        return Visit(lambda client: {}, [losses(task)], end)

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: int(u.argmax()) for i, u in enumerate(state["shares"]) if float(u[0]) >= 0}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return dict(enumerate(tree.unstack(state["experts"])))


def mixture(shares: Tensor, models: Tree) -> Tree:
    """Return sum_k u_k c_k / sum_k u_k of shares (K,) and stacked models (K, ...)."""
    u = (shares / shares.sum())[None]
    return tree.map(lambda x: x[0], tree.combine(u, models))
