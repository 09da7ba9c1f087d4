"""What methods share that find clusters by any of `rayfed.cluster` from what a round's clients sent, and keep a model for all beside
the clusters' experts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from rayfed import (
    ANY,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Phase,
    Visit,
    Wire,
    cluster,
    measure,
    model_of,
    sgd_visit,
    tree,
    visit,
)
from rayfed.cluster import auto, subspace
from rayfed.config import unread
from rayfed.errors import ConfigError
from rayfed.lazy import torch
from rayfed.methods._bases.clustered import by_least_loss, least, losses
from rayfed.task import of
from rayfed.visits import accumulate, average, once
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree
    from rayfed.config.schema import Config
    from rayfed.partition import Federation
    from rayfed.visits import Info


class FindsClusters(Method):
    """Base: server state {"model": for all, "experts": {cluster id: params}, "assignment": (N,) id or -1, ...}.

    Clusters are found from what `train` sends, of clients that all started from one model. Cluster ids persist between rounds by
    Hungarian matching of experts; an absent client keeps its id.
    """

    class Settings(MethodSettings):
        clusters: int = Field(3, ge=1, description="Number of clusters, K, where the clusterer takes one.")
        clusterer: dict[str, Any] = Field(
            {"kind": "agglomerative"}, description="Kind of clusterer and its settings; a kind's name alone will do."
        )
        signature: Literal["head", "all", "counts"] = Field(
            "head", description="What similarity is read from: classifier layer, all layers, class shares."
        )
        personal: Literal["cluster", "newcomers", "least_loss"] = Field(
            "cluster",
            description="What a client is served: its cluster's expert, the model for all before it has one; or of all experts and the "
            "model for all the one with the least loss on its training data, only before it has a cluster (newcomers), or always (ours).",
        )

        @field_validator("clusterer", mode="before")
        @classmethod
        def _known(cls, value: Any) -> dict[str, Any]:
            spec = {"kind": value} if isinstance(value, str) else dict(value)
            cluster.make(spec)
            return spec

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="for all"),
            "experts": Part(stack("K", PARAMS), note="only for clusterers that read losses"),
            "trials": Part(stack("M", PARAMS), note="candidates' experts; only for clusterer auto"),
            "places": Part(
                tensor("m", dtype="int64"), note="which of these a client measures; only for clusterer auto"
            ),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "counts": Part(tensor("C", dtype="int64"), note="h_i"),
            "signature": Part(tensor("q"), note="unit norm"),
            "losses": Part(tensor("K"), note="only for clusterers that read losses"),
            "bases": Part(tensor("F", "q"), note="once; only for clusterers subspace and auto"),
        },
        server={
            "model": Part(PARAMS, note="for all"),
            "experts": Part(ANY, note="cluster id -> omega_k"),
            "assignment": Part(tensor("N", dtype="int64"), note="cluster id of each client, -1 before its first round"),
        },
    )
    logs: ClassVar = auto.LOGS

    @property
    def clusterer(self) -> cluster.Clusterer:
        return cluster.make(self.settings.clusterer)

    @property
    def living(self) -> bool:
        """Whether experts are trained on from where they were."""
        return False

    def init(self, task: Task, key: int) -> Tree:
        if self.settings.signature == "head" and not task.head:
            raise ConfigError(
                "method.signature: head found, but the model has no trained classifier (no parameters of a submodule `head`); "
                "allowed here: all, counts"
            )
        return {
            "model": task.init_params(key),
            "experts": {},
            "assignment": torch.full((task.population,), -1),
        }

    # what clients are asked
    @visit
    def train(self, task: Task) -> Visit:
        """Train the model for all; send the update, class counts and a signature of it."""

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            signature = self.signature(task, client.info, delta)
            return {"delta": delta, "counts": client.info.counts, "signature": signature}, client.own

        return sgd_visit(task.loss, self.local, start=lambda client: {"model": self.start(client)}, end=end)

    def start(self, client: ClientContext) -> Tree:
        """Return what a client trains from; what it sends is relative to the model for all."""
        return client.shared["model"]

    def signature(self, task: Task, info: Info, delta: Tree) -> Tensor:
        """Return a client's signature (q,), of unit length."""
        if self.settings.signature == "counts":
            s = info.counts.to(task.dtype) / info.examples.clamp(min=1)
        else:
            s = tree.flatten({n: delta[n] for n in task.head} if self.settings.signature == "head" else delta)
        return s / s.norm().clamp(min=1e-12)

    @visit
    def score(self, task: Task) -> Visit:
        """Measure the mean training loss of each of some models."""

        def losses(experts: Tree, batch: Any) -> Tree:
            return {"losses": torch.stack([task.loss(e, batch) for e in experts.values()], -1)}

        def like(client: ClientContext) -> Tree:
            return {"losses": torch.zeros(len(client.shared["experts"]), dtype=task.dtype, device=task.device)}

        visit = measure(losses, like, model=lambda client: client.shared["experts"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"losses": visit.end(client, carry)[0]["losses"]}, client.own

        return visit._replace(end=end)

    @visit
    def bases(self, task: Task) -> Visit:
        """Send a basis of the client's inputs (clusterers subspace and auto)."""
        return subspace.basis_visit(task, getattr(self.clusterer.settings, "basis", 1))

    @visit
    def trial(self, task: Task) -> Visit:
        """Measure the mean training loss of those of the candidates' experts that the client is told (clusterer auto)."""

        def begin(client: ClientContext) -> Tree:
            places = client.mine["places"]
            zero = torch.zeros(len(places), dtype=task.dtype, device=task.device)
            return {"models": client.shared["trials"], "places": places, "sum": {"losses": zero}, "n": zero.sum()}

        def step(carry: Tree, batch: Any, key: Tensor) -> Tree:
            asked = range(len(carry["places"]))
            rows = [task.loss(tree.pick(carry["models"], carry["places"][i]), batch) for i in asked]
            return {**carry, **accumulate(carry, {"losses": torch.stack(rows, -1)}, batch["w"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return average(carry), client.own

        return Visit(begin, [Phase(once("train"), step, counts=False)], end)

    # the server's part
    def find_clusters(self, state: Tree, got: Replies, fed: Fed, start: Tree) -> tuple[np.ndarray, list[int] | None]:
        """Return the cluster 0..K-1 of each reply or MISSING, and the clusters' persistent ids if the clusterer knows them.

        got: replies with `delta` kept; start: the model that all of them started from.
        """
        known = {k: state["experts"][k] for k in sorted(state["experts"], key=int)}

        def losses() -> dict[int, Tensor]:
            return fed.ask(self.score, got.ids, shared={"experts": known}).gather("losses")

        def log(name: str, value: float) -> None:
            fed.log(f"clusters/{name}", value)

        spans = fed.federation.kind not in ("text", "instruct")  # token ids span nothing
        evidence = cluster.Evidence(
            got.ids, got.stacked("signature"), got.stacked("counts"), fed.planted, losses, [int(k) for k in known],
            state["assignment"].tolist(), gram=lambda: got.gram("delta"),
            bases=lambda: self._bases(state, got, fed) if spans else {}, key=fed.key("clusterer"),
            examples=got.examples.tolist(), trial=self._trials(got, fed, start), log=log, living=self.living,
        )  # fmt: skip
        clusterer = self.clusterer
        raw = clusterer.labels(evidence, self.settings.clusters)
        labels, named = np.full(len(raw), cluster.MISSING), clusterer.ids(evidence, self.settings.clusters)
        labels[raw != cluster.MISSING] = cluster.canonical(raw[raw != cluster.MISSING])
        if named is None:
            return labels, None
        first = [int(raw[labels == j][0]) for j in range(labels.max() + 1)]
        fresh = itertools.count(max(evidence.known, default=-1) + 1)
        return labels, [named[k] if k in named else next(fresh) for k in first]

    def _trials(self, got: Replies, fed: Fed, start: Tree) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """Return `Evidence.trial`: one ask, in which each client measures its own choice of models."""

        def trial(weights: np.ndarray, asked: np.ndarray) -> np.ndarray:
            models = [tree.add(start, d) for d in got.linear("delta", torch.as_tensor(weights))]
            mine = {c: {"places": torch.as_tensor(row)} for c, row in zip(got.ids, asked, strict=True)}
            told = fed.ask(self.trial, got.ids, shared={"trials": tree.stack(models)}, mine=mine).gather("losses")
            silent = np.full(asked.shape[1], np.nan)
            return np.stack([told[c].double().numpy() if c in told else silent for c in got.ids])

        return trial

    def _bases(self, state: Tree, got: Replies, fed: Fed) -> dict[int, Tensor]:
        """Return client -> (F, q) of the round's clients; who took part before has sent its own, and the server keeps it."""
        new = state["assignment"][got.ids] < 0
        found: dict[int, Tensor] = {}
        for clients, metered in ((torch.tensor(got.ids)[new], True), (torch.tensor(got.ids)[~new], False)):
            found |= fed.ask(self.bases, clients.tolist(), metered=metered).gather("bases")
        return found

    def match_ids(self, state: Tree, clients: list[int], labels: np.ndarray, experts: list[Tree]) -> list[int]:
        known = sorted(state["experts"], key=int)
        rows, theirs = ([tree.flatten(e) for e in es] for es in (experts, [state["experts"][k] for k in known]))
        return cluster.persistent_ids(
            torch.stack(rows), clients, labels, [int(k) for k in known], state["assignment"],
            torch.stack(theirs) if known else torch.zeros(0),
        )  # fmt: skip

    def remember(
        self, state: Tree, clients: list[int], labels: np.ndarray, ids: list[int], experts: list[Tree]
    ) -> tuple[dict[str, Tree], Tensor]:
        """Return the next state's `experts` and `assignment` (N,): those that nobody has any more fall away unless the clusterer keeps
        them.

        ids, experts: of the round's clusters 0..K-1; labels: (n,) of its clients, or MISSING.
        """
        placed = labels != cluster.MISSING
        at = torch.tensor(clients)[torch.as_tensor(placed)]
        assignment = state["assignment"].index_put((at,), torch.tensor([ids[k] for k in labels[placed]]))
        keeps = self.clusterer.keeps
        kept = {k: e for k, e in state["experts"].items() if keeps or bool((assignment == int(k)).any())}
        return {**kept, **{str(i): e for i, e in zip(ids, experts, strict=True)}}, assignment

    # what clients are served: their expert, or the model for all
    def serve(self, state: Tree) -> Tree:
        ids = sorted(state["experts"], key=int)
        return {"experts": tree.stack([*(state["experts"][k] for k in ids), state["model"]])}

    def mine(self, state: Tree, client: int) -> Tree | None:
        return None if self.settings.personal == "least_loss" else self.place(state, client)

    def place(self, state: Tree, client: int) -> Tree:
        """Return which row of what `serve` gives is the client's expert; the last one, the model for all, before it has a cluster."""
        ids = [int(k) for k in sorted(state["experts"], key=int)]
        k = int(state["assignment"][client]) if client < len(state["assignment"]) else -1
        return {"place": torch.tensor(ids.index(k) if k in ids else len(ids))}

    def view(self, task: Task) -> Visit:
        if self.settings.personal == "least_loss":
            return by_least_loss(task)
        if self.settings.personal == "cluster":
            return model_of(lambda client: tree.pick(client.shared["experts"], client.mine["place"]))

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            experts, own = client.shared["experts"], client.mine["place"]
            has_one = own < len(tree.values(experts)[0]) - 1
            return {"model": tree.pick(experts, torch.where(has_one, own, least(carry)))}, client.own

        return Visit(lambda client: {}, [losses(task)], end)

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in enumerate(state["assignment"].tolist()) if k >= 0}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return {int(k): e for k, e in state["experts"].items()}

    def check(self, config: Config) -> list[str]:
        problems, s, clusterer = [], self.settings, self.clusterer
        if s.clusterer["kind"] == "oracle" and config.federation.groups.kind == "none":
            problems.append("method.clusterer: oracle needs planted groups, but federation.groups is none")
        if s.clusters != type(s).model_fields["clusters"].default and not clusterer.takes_number:
            found, allowed = s.clusterer, "a clusterer that takes a number"
            problems.append(unread.sentence("method.clusters", s.clusters, "method.clusterer", found, allowed))
        return problems + unread.sentences(clusterer.settings, "method.clusterer")

    def fits(self, federation: Federation) -> list[str]:
        if self.settings.signature == "head" and not of(federation.task).per_class:
            return [
                "method.signature: head found, task.data holds instructions, whose model has no classifier; allowed: all, counts"
            ]
        if federation.kind in ("text", "instruct"):
            if self.settings.clusterer["kind"] == "subspace":
                return [
                    "method.clusterer: subspace found, it compares the spans of inputs, which token ids do not have"
                ]
            if "inputs" in (getattr(self.clusterer.settings, "evidence", None) or ()):
                return ["method.clusterer.evidence: inputs found, token ids span nothing; allowed: leave it out"]
        return []
