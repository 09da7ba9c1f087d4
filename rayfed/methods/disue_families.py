"""DisUE over several architectures: experts of all clusters teach a universal model of every architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from rayfed import ANY, Part, Wire, cluster, mean, model_of, stack, tree
from rayfed.distill import ensemble
from rayfed.distill.d_phase import DPhase
from rayfed.lazy import F, torch
from rayfed.methods._bases.finds_clusters import FindsClusters
from rayfed.wire import OWN_PARAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from rayfed import Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class Learnt(NamedTuple):
    """What a round's clients of one architecture made: who replied, their mean model, their clusters' experts, (K, C) rows of each
    class in these, and the next `experts` and `assignment`."""

    clients: list[int]
    average: Tree
    experts: list[Tree]
    counts: Tensor
    known: Tree
    assignment: Tensor


class DisUEFamilies(DPhase, FindsClusters):
    """After Leng et al. 2025, DisUE (IJCAI 2025, 2506.20285): knowledge passes between clusters as answers, so that they need not have
    one architecture. The paper has one; its D-phase is taken as it stands in `disue` [inferred], what follows is ours.

    Family f: the clients of one architecture, theta_f their universal model. A round:
    L-phase, client i of f: omega_i <- theta_f, local SGD; sends omega_i - theta_f, class counts h_i, a signature.
    C-phase, server, in each family: clusters of its clients (any of `rayfed.cluster`), omega_{f,k} the example-weighted mean of members.
    D-phase, server: one ensemble of all experts of all families, alpha_{f,k,c} = n_{f,k,c}^gamma / sum_{f',k'} n_{f',k',c}^gamma,
        q(x, y) = tau log sum_{f,k} alpha_{f,k,y} softmax(f_f(x; omega_{f,k}) / tau);
        theta_f starts at its family's plain average and takes SGD steps on tau^2 KL(softmax(q / tau) || softmax(f_f(x; theta_f) / tau)),
    on inputs x that are generated (one generator for all, trained against each student in turn), drawn from what clients told of their
    inputs, or a public set's. With one architecture and inputs that are generated this is `disue` to the bit.
    `distill: false` is the control: FedAvg in each family by itself, to the bit. A family of which nobody replied stays as it is.
    A client is served its cluster's expert; before its first round, and held-out ones, theta_f: scope `unseen` is what the universal
    models are worth. There is no one model: `global` scores the mean of the served models' predictions.
    Down: theta_f (P_f floats). Up: update (P_f), h_i (C ints), signature (q); of clusterers and of inputs what `disue` sends for them.
    Kept at clients: nothing. At the server: of each family theta_f, experts, ids; the generator, or what clients told.
    """

    class Settings(DPhase.Settings, FindsClusters.Settings):
        needs: ClassVar = {
            k: v
            for k, v in DPhase.Settings.needs.items()
            if k not in ("space", "moments", "length", "experts", "personal")
        }
        # of one network's features, words or models
        space: ClassVar[str] = "inputs"  # type: ignore[misc]
        experts: ClassVar[str] = "cluster"  # type: ignore[misc]
        personal: ClassVar[str] = "cluster"  # type: ignore[misc]
        moments: ClassVar[float] = 0.0  # type: ignore[misc]
        length: ClassVar[int] = 0  # type: ignore[misc]
        inputs: Literal["generator", "probe", "statistics", "client_generators"] = Field(
            "generator",
            description="What the students learn on: generated inputs, a public set's, draws from class Gaussians of inputs, or what "
            "clients' own generators draw.",
        )

    wire: ClassVar[Wire] = Wire(
        down={
            **FindsClusters.wire.down,
            "model": Part(OWN_PARAMS, note="theta_f"),
            "experts": Part(stack("K", OWN_PARAMS), note="only for clusterers that read losses, and accept: best"),
            "trials": Part(stack("M", OWN_PARAMS), note="candidates' experts; only for clusterer auto"),
        },
        up={
            **DPhase.wire.up,
            **FindsClusters.wire.up,
            "delta": Part(OWN_PARAMS, update=True),
        },
        server={
            "families": Part(ANY, note="family -> model (theta_f), experts (cluster id -> omega_k), assignment (N,)"),
            **DPhase.wire.server,
        },
    )
    logs: ClassVar = {**FindsClusters.logs, **DPhase.logs}
    universal: ClassVar[str | None] = None
    no_rule = "asks each architecture by itself, and what a rule remembers is of one model"

    def splits_model(self) -> bool:
        return False

    def init(self, task: Task, key: int) -> Tree:
        found = {name: FindsClusters.init(self, of, key) for name, of in task.by_family().items()}
        return {"families": found, **self.first_parts(task, key)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        sampled, learnt = fed.sample(), {}
        families: dict[str, Tree] = dict(state["families"])
        for number, name in enumerate(families):
            clients = [c for c in sampled if task.family is None or task.family[c] == number]
            found = self.learn(families[name], clients, fed)
            if found is not None:
                learnt[name] = found
        parts: Tree = {n: state[n] for n in DPhase.wire.server}
        if self.distils(fed.round):
            parts = self.hear([c for x in learnt.values() for c in x.clients], parts, fed)
        tasks = task.by_family()
        answers = ensemble.of_families([(tasks[n].apply, x.experts) for n, x in learnt.items()])
        counts = torch.cat([x.counts for x in learnt.values()]) if learnt else torch.zeros(0, task.classes)
        for name, x in learnt.items():
            theta = x.average
            if len(counts):
                before = {**parts, "model": families[name]["model"]}
                theta, parts = self.distil(before, theta, answers, counts, x.clients, fed, tasks[name])
            families[name] = {"model": theta, "experts": x.known, "assignment": x.assignment}
        return {"families": families, **parts}

    def learn(self, state: Tree, clients: Sequence[int], fed: Fed) -> Learnt | None:
        """Have clients of one architecture train, and find their clusters; None where nobody replies. state: the family's."""
        got = fed.ask(self.train, clients, shared={"model": state["model"]}, fold=mean("delta"), keep="delta")
        if not got.ids:
            return None
        average = tree.add(state["model"], got.folded["delta"])
        labels, named = self.find_clusters(state, got, fed, state["model"])
        placed = labels != cluster.MISSING
        held = got.stacked("counts").double()  # (n, C)
        if not placed.any():
            return Learnt(got.ids, average, [], held[:0], state["experts"], state["assignment"])
        member = F.one_hot(torch.as_tensor(labels).clamp(min=0)).T.double() * torch.as_tensor(placed)  # (K, n)
        weights = member * got.examples / (member @ got.examples)[:, None]
        experts = [tree.add(state["model"], d) for d in got.linear("delta", weights)]
        ids = named or self.match_ids(state, got.ids, labels, experts)
        known, assignment = self.remember(state, got.ids, labels, ids, experts)
        return Learnt(got.ids, average, experts, member @ held, known, assignment)

    def hear(self, clients: list[int], parts: Tree, fed: Fed) -> Tree:
        """Return the D-phase's parts with what clients of all architectures tell of their inputs, before any student learns."""
        if self.settings.inputs == "statistics":
            return {**parts, "statistics": self._told(parts["statistics"], {}, clients, fed) or {}}
        if self.settings.inputs == "client_generators":
            return {**parts, "generators": self._generators(parts["generators"], clients, fed)}
        return parts

    # what clients are served: their expert, or their architecture's universal model
    def serve(self, state: Tree) -> Tree:
        return {"experts": {n: FindsClusters.serve(self, s)["experts"] for n, s in state["families"].items()}}

    def mine(self, state: Tree, client: int) -> Tree | None:
        for family in state["families"].values():
            if client < len(family["assignment"]) and family["assignment"][client] >= 0:
                return self.place(family, client)
        return {"place": torch.tensor(-1)}

    def view(self, task: Task) -> Visit:
        def of(client):  # type: ignore[no-untyped-def]
            own, place = client.shared["experts"][task.family_name], client.mine["place"]
            last = len(tree.values(own)[0]) - 1
            return tree.pick(own, torch.where(place < 0, last, place))

        return model_of(of)

    def clusters(self, state: Tree) -> dict[int, int]:
        families = [*state["families"].values()]
        found = [FindsClusters.clusters(self, s) for s in families]
        return {i: k * len(families) + number for number, of in enumerate(found) for i, k in of.items()}

    def experts(self, state: Tree) -> dict[int, Tree]:
        families = [*state["families"].values()]
        found = [FindsClusters.experts(self, s) for s in families]
        return {k * len(families) + number: e for number, of in enumerate(found) for k, e in of.items()}

    def check(self, config: Config) -> list[str]:
        return FindsClusters.check(self, config) + DPhase.check(self, config)

    def fits(self, federation: Federation) -> list[str]:
        return FindsClusters.fits(self, federation) or DPhase.fits(self, federation)
