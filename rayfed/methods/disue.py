"""DisUE: clustered FL whose cluster experts are distilled, data-free, into one universal expert."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from rayfed import (
    ANY,
    CLASSES,
    PARAMS,
    Method,
    MethodSettings,
    Part,
    Wire,
    cluster,
    keys,
    mean,
    measure,
    model_of,
    sgd_visit,
    total,
    tree,
    visit,
)
from rayfed.cluster import subspace
from rayfed.config import unread
from rayfed.config.schema import Need
from rayfed.distill import datafree, statistics
from rayfed.errors import ConfigError
from rayfed.lazy import F, torch
from rayfed.methods._bases.clustered import by_least_loss
from rayfed.task import of
from rayfed.visits import Info
from rayfed.wire import stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Replies, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


LABELLED = ("generator", "embeddings", "statistics")  # inputs that are made for drawn labels


class DisUE(Method):
    """Leng et al. 2025, DisUE (IJCAI 2025, 2506.20285). The paper's equations were not readable: what is marked [inferred] is rebuilt
    from its keywords and the nearest public code (FedFTG, FedGen), and is a switch.

    L-phase, client i: omega_i <- theta, E epochs of SGD; sends omega_i - theta, class counts h_i, a signature s_i: the
    unit direction of its update's classifier layer [inferred]; under `secure_similarity: rotation` turned by an orthogonal
    map that only the clients know, which leaves all inner products as they are (h_i and the update itself go in the clear).
    C-phase, server: clusters of the round's clients (any of `rayfed.cluster`); omega_k = example-weighted mean of members.
    D-phase, server: alpha_{k,c} = n_{k,c}^gamma / sum_k' n_{k',c}^gamma; theta starts at the plain average and learns from
    the class-weighted experts on inputs of a generator that is kept between rounds (`rayfed.distill`) [inferred]. As in FedFTG's
    code the student's loss is a mean over examples and classes: a step at rate r is one of r / C down the KL divergence.
    Broadcast: theta, to every client of the next round.
    `distill: false` is the control arm: theta is FedAvg's to the bit, clusters and experts are found all the same.
    The paper generates images. `inputs: embeddings` has the generator make texts as sequences of `length` word embeddings,
    `inputs: probe` distils on public rows without labels instead of generated ones, `classes: shared` only on classes that
    several clusters own, `distill_until` stops the D-phase after that round, `distill_mix` keeps a share of the average:
    all five are ours. So are `accept: best`, `personal: least_loss` and `inputs: statistics`, draws from class Gaussians: of the average's
    features, on which the last layer learns from the experts' last layers or from the labels, as in `ccvr`; or of inputs, on
    which the whole model learns. Clients send sums of these and of their squares: with `space: inputs` the server thus knows
    the class means and covariances of what clients hold, which is more than the paper sends.
    Cluster ids persist between rounds by Hungarian matching of experts; an absent client keeps its id, and its expert is not
    replaced by one of clients that never had the id and that is not like it: that one gets a new id, so there may be more
    than `clusters` experts. A client that never took part is served theta. Who did not reply when a clusterer asked again
    keeps its id, or has none yet; it counts in the average and in no expert.
    Down: theta (P); for clusterer least_loss also the K experts (K P); for accept: best three
    models, for inputs: statistics the average. Up: update (P), h_i (C ints), s_i (q); for clusterer
    least_loss K losses; once, for clusterer subspace, bases (F, q). Kept at clients: nothing. At the server: theta, experts,
    ids, generator.
    """

    logs: ClassVar = {
        **datafree.LOGS,
        "distill/accepted": ("share of the distilled model in what was kept", "0 the average, 1/2 the middle, 1 all"),
    }

    class Settings(datafree.DataFree, MethodSettings):
        needs: ClassVar = {
            **datafree.DataFree.needs,
            **dict.fromkeys(("mix", "cross_entropy"), (Need("inputs", LABELLED), Need("teacher", ("experts",)))),
            **dict.fromkeys(("gamma", "tau"), (Need("teacher", ("experts",)),)),
            "rho": (Need("inputs", LABELLED), Need("sampler", ("pooled",))),
            **dict.fromkeys(("teacher", "space", "covariance", "shrink"), (Need("inputs", ("statistics",)),)),
            "classes": (Need("inputs", ("generator", "embeddings", "probe")),),
        }
        clusters: int = Field(3, ge=1, description="Number of clusters, K, where the clusterer takes one.")
        clusterer: dict[str, Any] = Field(
            {"kind": "agglomerative"}, description="Kind of clusterer and its settings; a kind's name alone will do."
        )
        signature: Literal["head", "all", "counts"] = Field(
            "head", description="What similarity is read from: classifier layer, all layers, class shares."
        )
        secure_similarity: Literal["none", "rotation"] = Field(
            "none", description="Hide signatures from the server by a secret rotation."
        )
        distill: bool = Field(True, description="The D-phase; false is the control arm.")
        distill_until: int | None = Field(
            12, ge=0, description="Last round with a D-phase; null never stops (worse late in training)."
        )
        distill_mix: float = Field(1.0, ge=0, le=1, description="theta = (1 - mix) average + mix distilled.")
        student_init: Literal["average", "previous"] = Field(
            "average", description="Where the student starts: this round's average or last theta."
        )
        inputs: Literal["generator", "embeddings", "probe", "statistics"] = Field(
            "generator",
            description="What the student learns on: as in FedFTG generated inputs (texts: embeddings) or a probe set; or drawn features "
            "of class Gaussians, on which its last layer learns (ours).",
        )
        space: Literal["features", "inputs"] = Field(
            "features",
            description="Whose class Gaussians are drawn from: the average's penultimate features, on which the last layer learns, or "
            "inputs (real-valued ones), on which the whole model learns.",
        )
        covariance: statistics.Covariance = Field(
            "diag", description="Of each class its diagonal, of each class whole, or one for all classes."
        )
        shrink: float = Field(0.0, ge=0, le=1, description="Share of a multiple of the identity in covariances.")
        teacher: Literal["experts", "labels"] = Field(
            "experts",
            description="Who teaches on drawn features: the experts' last layers, or the labels (inputs: statistics).",
        )
        accept: Literal["always", "best"] = Field(
            "always",
            description="Keep the distilled model; or of it, the average and their middle the one with the least loss on the round's "
            "clients' training data (ours).",
        )
        personal: Literal["cluster", "least_loss"] = Field(
            "cluster",
            description="What a client is served: its cluster's expert; or of all experts and theta the one with the least loss on its "
            "training data (ours).",
        )

        @field_validator("clusterer", mode="before")
        @classmethod
        def _known(cls, value: Any) -> dict[str, Any]:
            spec = {"kind": value} if isinstance(value, str) else dict(value)
            cluster.make(spec)
            return spec

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="theta"),
            "experts": Part(stack("K", PARAMS), note="only for clusterer least_loss and accept: best"),
        },
        up={
            "delta": Part(PARAMS, update=True),
            "counts": Part(tensor("C", dtype="int64"), note="h_i"),
            "signature": Part(tensor("q"), note="unit norm, maybe rotated"),
            "losses": Part(tensor("K"), note="only for clusterer least_loss and accept: best"),
            "bases": Part(tensor("F", "q"), note="once; only for clusterer subspace"),
            "rows": Part(CLASSES, note="of each class; this and the next two only for inputs: statistics"),
            "sums": Part(tensor("C", "d"), note="of features; once, of inputs"),
            "squares": Part(ANY, note="(C, d), or symmetric (C, d, d)"),
        },
        server={
            "model": Part(PARAMS, note="theta"),
            "experts": Part(ANY, note="cluster id -> omega_k"),
            "assignment": Part(tensor("N", dtype="int64"), note="cluster id of each client, -1 before its first round"),
            "generator": Part(ANY, note="generator and its Adam state"),
            "statistics": Part(ANY, note="sums over the clients so far, and whose; only with space: inputs"),
        },
    )

    @property
    def clusterer(self) -> cluster.Clusterer:
        return cluster.make(self.settings.clusterer)

    def splits_model(self) -> bool:
        return self.settings.inputs == "statistics" and self.settings.space == "features"

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
            "generator": datafree.init(task, keys.key(key, 0, -1, "generator"), self.settings),
            "statistics": {},
        }

    # L-phase
    @visit
    def train(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            delta = tree.sub(carry["model"], client.shared["model"])
            signature = self._signature(task, client.info, delta)
            return {"delta": delta, "counts": client.info.counts, "signature": signature}, client.own

        return sgd_visit(task.loss, self.local, end=end)

    def _signature(self, task: Task, info: Info, delta: Tree) -> Tensor:
        if self.settings.signature == "counts":
            s = info.counts.to(task.dtype) / info.examples.clamp(min=1)
        else:
            s = tree.flatten({n: delta[n] for n in task.head} if self.settings.signature == "head" else delta)
        s = s / s.norm().clamp(min=1e-12)
        return rotate(s, info.secret) if self.settings.secure_similarity == "rotation" else s

    @visit
    def score(self, task: Task) -> Visit:
        """Measure the mean training loss of each known expert (clusterer least_loss)."""

        def losses(experts: Tree, batch: Any) -> Tree:
            return {"losses": torch.stack([task.loss(e, batch) for e in experts.values()], -1)}

        def like(client: ClientContext) -> Tree:
            return {"losses": torch.zeros(len(client.shared["experts"]), dtype=task.dtype, device=task.device)}

        visit = measure(losses, like, model=lambda client: client.shared["experts"])

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"losses": visit.end(client, carry)[0]["losses"]}, client.own

        return visit._replace(end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"), keep="delta")
        average = tree.add(state["model"], got.folded["delta"])
        if not got.ids:
            return state
        # C-phase
        labels, named = self._cluster(state, got, fed)
        placed = labels != cluster.MISSING
        if not placed.any():
            return {**state, "model": average}
        n = got.examples
        member = F.one_hot(torch.as_tensor(labels).clamp(min=0)).T.double() * torch.as_tensor(placed)  # (K, n)
        weights = member * n / (member @ n)[:, None]
        experts = [tree.add(state["model"], d) for d in got.linear("delta", weights)]
        counts = member @ got.stacked("counts").double()  # (K, C)
        ids = named or self._match_ids(state, got.ids, labels, experts)
        theta, generator, told = average, state["generator"], state["statistics"]
        if s.distill and s.iterations and (s.distill_until is None or fed.round <= s.distill_until):
            start = average if s.student_init == "average" else state["model"]
            theta, generator, told = self._distill(state, start, experts, counts, got.ids, fed, task)
            if s.distill_mix != 1:
                theta = tree.add(tree.scale(average, 1 - s.distill_mix), theta, s.distill_mix)
            if s.accept == "best":
                theta = self._best(average, theta, got.ids, fed)
        at = torch.tensor(got.ids)[torch.as_tensor(placed)]
        assignment = state["assignment"].index_put((at,), torch.tensor([ids[k] for k in labels[placed]]))
        keeps = self.clusterer.keeps
        kept = {k: e for k, e in state["experts"].items() if keeps or bool((assignment == int(k)).any())}
        return {
            "model": theta,
            "experts": {**kept, **{str(i): e for i, e in zip(ids, experts, strict=True)}},
            "assignment": assignment,
            "generator": generator,
            "statistics": told,
        }

    def _distill(
        self, state: Tree, start: Tree, experts: list[Tree], counts: Tensor, clients: list[int], fed: Fed, task: Task
    ) -> tuple[Tree, Tree, Tree]:
        """Return the student, the generator and the kept statistics after the round's D-phase."""
        s, key = self.settings, fed.key("D-phase")
        if s.inputs == "statistics":
            told, space = self._told(state, start, clients, fed), self._space(task)
            if told is None:
                return start, state["generator"], state["statistics"]
            of = statistics.gaussians([told[part] for part in statistics.PARTS], s.covariance, s.shrink)
            theta, losses = datafree.distill_on_draws(task, space, start, experts, counts, of, s, key, fed.round)
            generator = state["generator"]
        else:
            told, probe = state["statistics"], fed.probe() if s.inputs == "probe" else None
            theta, generator, losses = datafree.distill(
                task, start, experts, counts, state["generator"], s, key, fed.round, probe
            )
        for name, value in losses.items():
            fed.log(f"distill/{name}", value)
        return theta, generator, told if s.space == "inputs" else {}

    def _space(self, task: Task) -> statistics.Space:
        return statistics.features(task) if self.settings.space == "features" else statistics.inputs(task)

    @visit
    def sums(self, task: Task) -> Visit:
        """Send sums per class of the average model's features, or of inputs, and of their squares (inputs: statistics)."""
        return statistics.sums_visit(task, self._space(task), self.settings.covariance)

    def cost(self, part: str, sent: Tree) -> int:
        return statistics.cost(part, sent)

    def _told(self, state: Tree, model: Tree, clients: list[int], fed: Fed) -> Tree | None:
        """Return the sums of `sums`: of features those of the round's clients; of inputs, which each client sends once, all so far."""
        folds = tuple(total(part) for part in statistics.PARTS)
        if self.settings.space == "features":
            got = fed.ask(self.sums, clients, shared={"model": model}, fold=folds)
            return dict(got.folded) if got.ids else None
        before = state["statistics"]
        by = before["by"] if before else torch.zeros(fed.population, dtype=torch.bool)
        got = fed.ask(self.sums, [c for c in clients if not by[c]], fold=folds)
        if not got.ids:
            return before or None
        sums = {part: got.folded[part] + (before[part] if before else 0) for part in statistics.PARTS}
        return {**sums, "by": by.index_fill(0, torch.tensor(got.ids), True)}

    def _best(self, average: Tree, distilled: Tree, clients: list[int], fed: Fed) -> Tree:
        """Return the average, the distilled model or what lies half-way: whichever has the least loss on the clients' training data."""
        half = tree.add(tree.scale(average, 0.5), distilled, 0.5)
        candidates = {"0": average, "1": half, "2": distilled}
        got = fed.ask(self.score, clients, shared={"experts": candidates}, fold=mean("losses"))
        if not got.ids:
            return average
        best = int(got.folded["losses"].argmin())
        fed.log("distill/accepted", best / 2)
        return candidates[str(best)]

    def _match_ids(self, state: Tree, clients: list[int], labels: np.ndarray, experts: list[Tree]) -> list[int]:
        known = sorted(state["experts"], key=int)
        rows, theirs = ([tree.flatten(e) for e in es] for es in (experts, [state["experts"][k] for k in known]))
        return cluster.persistent_ids(
            torch.stack(rows), clients, labels, [int(k) for k in known], state["assignment"],
            torch.stack(theirs) if known else torch.zeros(0),
        )  # fmt: skip

    def _cluster(self, state: Tree, got: Replies, fed: Fed) -> tuple[np.ndarray, list[int] | None]:
        """Return the cluster 0..K-1 of each reply or MISSING, and the clusters' persistent ids if the clusterer knows them."""
        known = {k: state["experts"][k] for k in sorted(state["experts"], key=int)}

        def losses() -> dict[int, Tensor]:
            return fed.ask(self.score, got.ids, shared={"experts": known}).gather("losses")

        evidence = cluster.Evidence(
            got.ids, got.stacked("signature"), got.stacked("counts"), fed.planted, losses, [int(k) for k in known],
            state["assignment"].tolist(), gram=lambda: got.gram("delta"), bases=lambda: self._bases(state, got, fed),
            key=fed.key("clusterer"),
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

    @visit
    def bases(self, task: Task) -> Visit:
        """Send a basis of the client's inputs (clusterer subspace)."""
        return subspace.basis_visit(task, getattr(self.clusterer.settings, "basis", 1))

    def _bases(self, state: Tree, got: Replies, fed: Fed) -> dict[int, Tensor]:
        """Return client -> (F, q) of the round's clients; who took part before has sent its own, and the server keeps it."""
        new = state["assignment"][got.ids] < 0
        found: dict[int, Tensor] = {}
        for clients, metered in ((torch.tensor(got.ids)[new], True), (torch.tensor(got.ids)[~new], False)):
            found |= fed.ask(self.bases, clients.tolist(), metered=metered).gather("bases")
        return found

    def serve(self, state: Tree) -> Tree:
        ids = sorted(state["experts"], key=int)
        return {"experts": tree.stack([*(state["experts"][k] for k in ids), state["model"]])}

    def mine(self, state: Tree, client: int) -> Tree | None:
        if self.settings.personal == "least_loss":
            return None
        ids = [int(k) for k in sorted(state["experts"], key=int)]
        k = int(state["assignment"][client]) if client < len(state["assignment"]) else -1
        return {"place": torch.tensor(ids.index(k) if k in ids else len(ids))}

    def view(self, task: Task) -> Visit:
        if self.settings.personal == "least_loss":
            return by_least_loss(task)
        return model_of(lambda client: tree.pick(client.shared["experts"], client.mine["place"]))

    def clusters(self, state: Tree) -> dict[int, int]:
        return {i: k for i, k in enumerate(state["assignment"].tolist()) if k >= 0}

    def experts(self, state: Tree) -> dict[int, Tree]:
        return {int(k): e for k, e in state["experts"].items()}

    def check(self, config: Config) -> list[str]:
        problems = []
        if self.settings.clusterer["kind"] == "oracle" and config.federation.groups.kind == "none":
            problems.append("method.clusterer: oracle needs planted groups, but federation.groups is none")
        s, clusterer = self.settings, self.clusterer
        if s.clusters != type(s).model_fields["clusters"].default and not clusterer.takes_number:
            found, allowed = s.clusterer, "a clusterer that takes a number"
            problems.append(unread.sentence("method.clusters", s.clusters, "method.clusterer", found, allowed))
        problems += unread.sentences(clusterer.settings, "method.clusterer")
        if s.distill and s.inputs == "statistics" and s.space == "features":
            problems += statistics.check(config)
        return problems + datafree.check(self.settings, config)

    def fits(self, federation: Federation) -> list[str]:
        if self.settings.signature == "head" and not of(federation.task).per_class:
            return [
                "method.signature: head found, task.data holds instructions, whose model has no classifier; allowed: all, counts"
            ]
        if self.settings.clusterer["kind"] == "subspace" and federation.kind in ("text", "instruct"):
            return ["method.clusterer: subspace found, it compares the spans of inputs, which token ids do not have"]
        s = self.settings
        if s.inputs == "statistics" and s.space == "inputs" and federation.kind in ("text", "instruct"):
            return ["method.space: inputs found, token ids have no Gaussians; allowed: features"]
        return datafree.fits(s, federation) if s.distill else []


def rotate(s: Tensor, secret: Tensor) -> Tensor:
    """Return Q s for an orthogonal Q drawn from `secret`: random signs, a Hadamard transform, random signs; (q,) -> (2^m,).

    Inner products of two vectors turned by the same secret stay what they are, to rounding.
    """
    m = 1 << max(0, (s.shape[0] - 1).bit_length())
    x = F.pad(s, (0, m - s.shape[0]))
    for i in range(2):
        x = x * torch.where(keys.uniform(keys.fold(secret, i), (m,), s.dtype) < 0.5, -1.0, 1.0).to(s.dtype)
        h = 1
        while h < m:
            pairs = x.reshape(-1, 2, h)
            x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(-1)
            h *= 2
        x = x / m**0.5
    return x
