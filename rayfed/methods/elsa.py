"""ELSA: clients join edge servers by fingerprints on public inputs, latency and trust, and train a split network in that hierarchy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from rayfed import (
    PARAMS,
    SCALAR,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    attack,
    keys,
    mean,
    sgd_visit,
    tree,
    visit,
)
from rayfed.lazy import torch
from rayfed.task import needs_classes
from rayfed.visits import steps, whole
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Batch


class Elsa(Method):
    """Yang et al. 2026, "ELSA" (2601.13824); no public code. From its abstracts and a review: what is [inferred] is not the paper's text.

    Before the first round that has clients, all of them train `warm_steps` from the common model, and answer the public inputs
    (`federation.public`): R_n = N(mu_n, Sigma_n + eps I) of their features, projected on `dims` common random directions [inferred], and
    class probabilities P_n. Nothing of that training is kept.
        S(n, m) = (KL(R_n || R_m) + KL(R_m || R_n)) / 2
        tau_n = exp(-beta mean_j JS(P_n^j, mean or median over clients of P^j)) [inferred]; below `tau_min` of the median a client
            is asked for nothing.
        cost(n, k) = similarity * mean of S(n, m) over edge k's members, scaled to [0, 1] + latency * distance(n, k) / largest
            + distrust * (1 - tau_n) [inferred]; clients join the `edges` by the cheapest pairs while there is room (`capacity`),
            again until nobody moves, from clients that are far apart.
    A round: client n of edge k trains edge k's model, cut at `task.split`; edge k adds the mean of its updates, weighted by tau_n n_n
    [inferred]. Every `cloud_every` rounds the cloud takes the mean of the edges' models by the tau_n n_n of their members, which all start
    from again, and which is served.
    Sketches and rotations are `task.split.transforms`. The part at an edge is a copy for each client within a round (SplitFed-v1).
    Distances are between places of clients and edges drawn in a square: no network is measured. `edges: 1, beta: 0` is FedAvg.
    Down: the model (P); once: the public inputs. Up: its change, tau_n n_n; once: mu_n, Sigma_n, P_n (D + D^2 + Q C), n_n.
    Between edges and cloud: K models up and down every `cloud_every` rounds (`elsa/cloud_bytes`), which clients' bytes do not have.
    Kept at clients: nothing. At the server: the cloud's and the edges' models, tau, who is where.
    """

    class Settings(MethodSettings):
        edges: int = Field(2, ge=1, description="Edge servers.")
        warm_steps: int = Field(20, ge=1, description="Local steps before a client's fingerprint.")
        dims: int = Field(16, ge=1, description="Random directions that features are projected on.")
        eps: float = Field(0.01, gt=0, description="Added to the variances of fingerprints, over their mean variance.")
        beta: float = Field(5.0, ge=0, description="How fast trust falls with a client's distance from the consensus.")
        tau_min: float = Field(
            0.5, ge=0, lt=1, description="Share of the median trust below which a client is left out."
        )
        consensus: Literal["mean", "median"] = Field("median", description="Of the clients' probabilities.")
        similarity: float = Field(1.0, ge=0, description="Weight of fingerprints in a client's choice of its edge.")
        latency: float = Field(0.2, ge=0, description="Weight of its distance from the edge.")
        distrust: float = Field(0.0, ge=0, description="Weight of 1 - trust: trusted clients then come first.")
        capacity: int | None = Field(None, ge=1, description="Most clients of an edge; null: as many as join.")
        cloud_every: int = Field(2, ge=1, description="Rounds between two means of all edges.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="before fingerprints"),
            "models": Part(stack("K", PARAMS), note="the edge's own", routed=True),
            "edge": Part(tensor(dtype="int64"), note="which; nothing in a deployment"),
            "trust": Part(tensor(dtype="float64"), note="tau_n; known to the edge"),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "weight": Part(SCALAR, note="tau_n n_n"),
            "mu": Part(tensor("D"), note="mean of projected features of the public inputs"),
            "sigma": Part(tensor("D", "D"), note="their covariance"),
            "p": Part(tensor("Q", "C"), note="class probabilities of the public inputs"),
        },
        server={
            "model": Part(PARAMS, note="the cloud's"),
            "models": Part(stack("K", PARAMS), note="the edges'"),
            "edge": Part(tensor("N", dtype="int64"), note="of each client, -1 before it has one"),
            "trust": Part(tensor("N", dtype="float64"), note="tau_n"),
            "examples": Part(tensor("N", dtype="float64"), note="n_n, as far as known"),
        },
    )
    logs: ClassVar = {
        "elsa/apart": ("S of two clients, mean over pairs", "nats"),
        "elsa/left_out": ("clients whose trust is below tau_min of the median", "clients"),
        "elsa/auc": ("area under the ROC curve of 1 - trust, for clients that attack (attacks)", "fraction"),
        "elsa/edge_bytes": (
            "bytes between an edge and its clients, both ways, cuts among them",
            "bytes, mean over edges at work",
        ),
        "elsa/edge_bytes_most": ("of the busiest edge", "bytes"),
        "elsa/cloud_bytes": ("models between edges and cloud, both ways", "bytes"),
    }
    needs = frozenset({"classes", "features", "public"})
    no_rule = "edges have means of their own, and trust is its weight"
    no_privacy = "sends what it answers to public inputs without noise"

    def check(self, config: Config) -> list[str]:
        s, n = self.settings, config.training_clients()
        if s.capacity is not None and s.capacity * s.edges < n:
            return [
                f"method.capacity: {s.capacity} found, {s.edges} edges have no room for {n} clients then; allowed: at least "
                f"{-(-n // s.edges)}"
            ]
        return [f"method.edges: {s.edges} found, there are {n} clients that take part"] if s.edges > n >= 1 else []

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "elsa compares class probabilities")

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        model, n = task.init_params(key), task.population
        return {
            "model": model,
            "models": tree.stack([model] * self.settings.edges),
            "edge": torch.full((n,), -1),
            "trust": torch.ones(n, dtype=torch.float64),
            "examples": torch.zeros(n, dtype=torch.float64),
        }

    @visit
    def fingerprint(self, task: Task) -> Visit:
        """What a client answers to the public inputs after some steps."""
        s, q = self.settings, self.config.federation.public_rows
        made = sgd_visit(task.loss, self.local, phases=[(steps(s.warm_steps), None)])
        like: Any = {"dtype": task.dtype, "device": task.device}

        def enter(client: ClientContext, carry: Tree) -> Tree:
            zeros = {"mu": (s.dims,), "sigma": (s.dims, s.dims), "p": (q, task.classes)}
            return {"model": carry["model"], **{n: torch.zeros(shape, **like) for n, shape in zeros.items()}}

        def answer(carry: Tree, batch: Batch, key: Tensor) -> Tree:
            x = batch["x"][:q]
            t = task.features(carry["model"], x) @ directions(task, s.dims)
            p = torch.softmax(task.apply(carry["model"], x), -1)
            mu = t.mean(0)
            return {**carry, "mu": mu, "sigma": (t - mu).T @ (t - mu) / len(x), "p": p}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {n: carry[n] for n in ("mu", "sigma", "p")}, client.own

        return Visit(made.begin, [*made.phases, Phase(whole("public"), answer, enter, counts=False)], end)

    @visit
    def train(self, task: Task) -> Visit:
        def mine(client: ClientContext) -> Tree:
            return tree.pick(client.shared["models"], client.mine["edge"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            weight = client.mine["trust"] * client.info.examples
            return {"delta": tree.sub(carry["model"], mine(client)), "weight": weight.to(task.dtype)}, client.own

        return sgd_visit(task.loss, self.local, start=lambda client: {"model": mine(client)}, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        clients = fed.sample()
        if not clients:
            return state
        if bool((state["edge"] < 0).all()):
            state = self._joined(state, fed, task)
        trusted = [c for c in clients if bool(self.trusts(state["trust"])[c])]
        models = tree.unstack(state["models"])
        if trusted:
            mine = {c: {"edge": state["edge"][c], "trust": state["trust"][c]} for c in trusted}
            fold = mean("delta", weight="weight", by="edge")
            got = fed.ask(self.train, trusted, shared={"models": state["models"]}, mine=mine, fold=fold, keep="weight")
            for k, delta in got.folded["delta"].items():
                models[k] = tree.add(models[k], delta)
            self._log_bytes(got, state, fed)
        state = {**state, "models": tree.stack(models)}
        return state if fed.round % self.settings.cloud_every else self._at_cloud(state, fed)

    def trusts(self, tau: Tensor) -> Tensor:
        """Return who is asked, (N,) bool, by trust (N,)."""
        return tau >= self.settings.tau_min * tau.median()

    def _joined(self, state: Tree, fed: Fed, task: Task) -> Tree:
        """Return the state in which clients have joined edges. One without a fingerprint joins the nearest edge, with trust 1 (ours)."""
        s, n = self.settings, fed.population
        got = fed.ask(self.fingerprint, range(n), shared={"model": state["model"]})
        near = distances(n, s.edges, self.config.seed)
        edge, tau, examples = near.argmin(1), np.ones(n), np.zeros(n)
        if got.ids:
            ids = list(got.ids)
            mu, sigma, p = (got.stacked(name).to(torch.float64).numpy() for name in ("mu", "sigma", "p"))
            tau[ids] = trust(p, s.beta, s.consensus)
            spread = np.trace(sigma, axis1=1, axis2=2).mean() / s.dims
            apart = symmetric_kl(mu, sigma + s.eps * max(spread, 1e-12) * np.eye(s.dims))
            lams = (s.similarity, s.latency, s.distrust)
            fed.log("elsa/apart", float(apart.sum() / max(1, len(ids) * (len(ids) - 1))))
            edge[ids] = assign(apart, near[ids], tau[ids], lams, s.capacity or n)
            examples[ids] = [r.examples for r in got]
        bad = attack.everyone(self.config)
        fed.log("elsa/left_out", float((~self.trusts(torch.as_tensor(tau))).sum()))
        if 0 < len(bad) < n:
            from sklearn.metrics import roc_auc_score

            fed.log("elsa/auc", float(roc_auc_score(np.isin(np.arange(n), bad), 1 - tau)))
        return {
            **state,
            "edge": torch.as_tensor(edge, dtype=torch.int64),
            "trust": torch.as_tensor(tau),
            "examples": torch.as_tensor(examples),
        }

    def _at_cloud(self, state: Tree, fed: Fed) -> Tree:
        """Return the state after the cloud's mean of the edges that have members."""
        s, counts = self.settings, state["examples"] * state["trust"] * self.trusts(state["trust"])
        known = state["edge"] >= 0
        mass = torch.zeros(s.edges, dtype=torch.float64).index_add(0, state["edge"][known], counts[known])
        if not float(mass.sum()):
            return state
        model = _mean(state["models"], mass)
        fed.log("elsa/cloud_bytes", 2 * s.edges * tree.nbytes(model))
        return {**state, "model": model, "models": tree.stack([model] * s.edges)}

    def _log_bytes(self, got: Replies, state: Tree, fed: Fed) -> None:
        model = tree.nbytes(state["model"])
        of: dict[int, int] = {}
        for r in got:
            k = int(state["edge"][r.client])
            of[k] = of.get(k, 0) + 2 * model + r.crossed
        if of:
            fed.log("elsa/edge_bytes", sum(of.values()) / len(of))
            fed.log("elsa/edge_bytes_most", max(of.values()))

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in enumerate(state["edge"].tolist()) if k >= 0}


def _mean(models: Tree, weights: Tensor) -> Tree:
    """Return the mean of K models, leaves (K, ...), by weights (K,)."""
    w = weights / weights.sum()
    return tree.map(lambda x: torch.tensordot(w.to(x.dtype), x, dims=([0], [0])), models)


def directions(task: Task, dims: int) -> Tensor:
    """Return the common random directions (d, dims) that features (B, d) are projected on, of length about 1."""
    d = task.feature_size
    key = torch.tensor(keys.key(task.config.seed, 0, -1, "directions of fingerprints"), device=task.device)
    return keys.normal(key, (d, dims), task.dtype) / d**0.5


def symmetric_kl(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return S (n, n), half the sum of both divergences between normal distributions; mu (n, d), sigma (n, d, d) regular."""
    inverse, d = np.linalg.inv(sigma), mu.shape[1]
    gap = mu[:, None] - mu[None, :]
    # the log determinants cancel in the sum
    traces = np.einsum("mij,nji->nm", inverse, sigma) + np.einsum("nij,mji->nm", inverse, sigma)
    far = np.einsum("nmi,mij,nmj->nm", gap, inverse, gap) + np.einsum("nmi,nij,nmj->nm", gap, inverse, gap)
    return np.maximum((traces + far - 2 * d) / 4, 0.0)


def trust(p: np.ndarray, beta: float, consensus: str) -> np.ndarray:
    """Return tau (n,) of probabilities (n, Q, C): how near each client's are to their mean or median, by Jensen-Shannon divergence."""
    if consensus == "mean":
        middle = p.mean(0)
    else:
        middle = np.median(p, 0)
        middle = middle / np.maximum(middle.sum(-1, keepdims=True), 1e-12)
    both = (p + middle) / 2

    def kl(a: np.ndarray) -> np.ndarray:
        return np.where(a > 0, a * np.log(np.maximum(a, 1e-300) / np.maximum(both, 1e-300)), 0.0).sum(-1)

    js = (kl(p) + kl(np.broadcast_to(middle, p.shape))) / 2
    found: np.ndarray = np.exp(-beta * js.mean(-1))
    return found


def distances(clients: int, edges: int, seed: int) -> np.ndarray:
    """Return the distance of each client from each edge, (N, K), of places drawn in a square by the run's seed."""
    rng = keys.numpy(keys.key(seed, 0, -1, "places of edges and clients"))
    at, of = rng.random((clients, 2)), rng.random((edges, 2))
    found: np.ndarray = np.linalg.norm(at[:, None] - of[None, :], axis=-1)
    return found


def assign(
    apart: np.ndarray,
    near: np.ndarray,
    tau: np.ndarray,
    weights: tuple[float, float, float],
    capacity: int,
    turns: int = 20,
) -> np.ndarray:
    """Return each client's edge (n,): the cheapest pairs of client and edge come first, while the edge has room, again until nobody moves.

    apart: S (n, n); near: distances (n, K); tau: trust (n,); weights: of the three. Begins with clients that are far apart.
    """
    n, k = near.shape
    s = apart / max(float(apart.max()), 1e-12)
    seeds = [int(s.sum(1).argmin())]
    while len(seeds) < min(k, n):
        left = [c for c in range(n) if c not in seeds]
        seeds.append(max(left, key=lambda c: (s[c, seeds].min(), -c)))
    members = [[c] for c in seeds] + [[] for _ in range(k - len(seeds))]
    edge = np.full(n, -1)
    for _ in range(turns):
        far = np.stack([s[:, m].mean(1) if m else np.ones(n) for m in members], 1)
        cost = weights[0] * far + weights[1] * near / max(float(near.max()), 1e-12) + weights[2] * (1 - tau)[:, None]
        now, room = np.full(n, -1), [capacity] * k
        for pair in np.argsort(cost, axis=None, kind="stable"):
            c, e = divmod(int(pair), k)
            if now[c] < 0 and room[e]:
                now[c], room[e] = e, room[e] - 1
        if (now == edge).all():
            break
        edge = now
        members = [np.flatnonzero(edge == e).tolist() for e in range(k)]
    return edge
