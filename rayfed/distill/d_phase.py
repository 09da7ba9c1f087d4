"""DisUE's D-phase: a model for all that learns at the server from experts, on inputs made of what the server has."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import keys, tree
from rayfed.config.schema import Need
from rayfed.distill import client_generators, datafree, statistics
from rayfed.fold import mean, total
from rayfed.lazy import torch
from rayfed.method import Method, MethodSettings
from rayfed.visits import Visit, visit
from rayfed.wire import ANY, CLASSES, PARAMS, Part, Wire, stack, tensor

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.config.schema import Config
    from rayfed.distill.ensemble import Experts
    from rayfed.fed import Fed
    from rayfed.partition import Federation
    from rayfed.task import Task
    from rayfed.tree import Tree

MADE = ("generator", "embeddings")  # inputs that a generator makes
DRAWN = ("statistics", "client_generators")  # inputs that are drawn from what clients told
LABELLED = (*MADE, *DRAWN)  # inputs that are made for drawn labels


class DPhase(Method):
    """Base: `distil` gives the model for all. The server state's parts are those of `wire.server`; a visit `score` that sends `losses`
    of the models of shared["experts"] is the method's, for `accept: best`."""

    class Settings(datafree.DataFree, MethodSettings):
        needs: ClassVar = {
            **datafree.DataFree.needs,
            **dict.fromkeys(("mix", "cross_entropy"), (Need("inputs", LABELLED), Need("teacher", ("experts",)))),
            **dict.fromkeys(("gamma", "tau"), (Need("teacher", ("experts",)),)),
            "rho": (Need("inputs", LABELLED), Need("sampler", ("pooled",))),
            **dict.fromkeys(("space", "covariance", "shrink"), (Need("inputs", ("statistics",)),)),
            **dict.fromkeys(("generator_lr", "noise"), (Need("inputs", (*MADE, "client_generators")),)),
            "teacher": (Need("inputs", DRAWN),),
            "generator_epochs": (Need("inputs", ("client_generators",)),),
            "classes": (Need("inputs", (*MADE, "probe")),),
            "moments": (Need("inputs", MADE),),
        }
        distill: bool = Field(True, description="The D-phase; false is the control arm.")
        distill_until: int | None = Field(
            12, ge=0, description="Last round with a D-phase; null never stops (worse late in training)."
        )
        distill_mix: float = Field(1.0, ge=0, le=1, description="theta = (1 - mix) average + mix distilled.")
        student_init: Literal["average", "previous"] = Field(
            "average", description="Where the student starts: this round's average or last theta."
        )
        inputs: Literal["generator", "embeddings", "probe", "statistics", "client_generators"] = Field(
            "generator",
            description="What the student learns on: as in FedFTG generated inputs (texts: embeddings) or a probe set; or drawn features "
            "of class Gaussians, on which its last layer learns; or what clients' own generators draw (both ours).",
        )
        generator_epochs: int = Field(
            100, ge=1, description="Passes over its rows in which a client trains its generator, once."
        )
        experts: Literal["cluster", "class"] = Field(
            "cluster",
            description="Who teaches: the clusters' experts, or for each class the mean of all models by their rows of it (Mosaic).",
        )
        moments: float = Field(
            0.0,
            ge=0,
            description="Weight of a generator's loss on moments: what it makes shall have, in the average's features, the clients' class "
            "means and spread (ours).",
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
            description="Who teaches on draws (inputs: statistics, client_generators): the experts, or the labels.",
        )
        accept: Literal["always", "best"] = Field(
            "always",
            description="Keep the distilled model; or of it, the average and their middle the one with the least loss on the round's "
            "clients' training data (ours).",
        )

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS, note="the average, of whose features sums are sent"),
            "experts": Part(stack("K", PARAMS), note="for accept: best"),
        },
        up={
            "losses": Part(tensor("K"), note="for accept: best"),
            "generator": Part(ANY, note="once, with rows; only for inputs: client_generators"),
            "rows": Part(CLASSES, note="of each class; this and the next two for inputs: statistics, and for moments"),
            "sums": Part(tensor("C", "d"), note="of features; once, of inputs"),
            "squares": Part(ANY, note="(C, d), or symmetric (C, d, d)"),
        },
        server={
            "generator": Part(ANY, note="generator and its Adam state"),
            "statistics": Part(ANY, note="sums over the clients so far, and whose; only with space: inputs"),
            "generators": Part(ANY, note="client -> what it sent once; only with inputs: client_generators"),
        },
    )
    logs: ClassVar = {
        **datafree.LOGS,
        "distill/moments": (
            "how far the features of what is generated are from the clients' class moments, last generator step",
            "0 = equal",
        ),
        "distill/accepted": ("share of the distilled model in what was kept", "0 the average, 1/2 the middle, 1 all"),
    }

    def splits_model(self) -> bool:
        s = self.settings
        return bool(s.moments) or (s.inputs == "statistics" and s.space == "features")

    def first_parts(self, task: Task, key: int) -> Tree:
        """Return the D-phase's parts of the server state before round 1."""
        return {
            "generator": datafree.init(task, keys.key(key, 0, -1, "generator"), self.settings),
            "statistics": {},
            "generators": {},
        }

    def distils(self, round: int) -> bool:
        """Return whether a round, from 1, has a D-phase."""
        s = self.settings
        return bool(s.distill and s.iterations and (s.distill_until is None or round <= s.distill_until))

    def distil(
        self, state: Tree, average: Tree, experts: Experts, counts: Tensor, clients: list[int], fed: Fed, task: Task
    ) -> tuple[Tree, Tree]:
        """Return the round's model for all, and the D-phase's parts of the next state; the average where there is nothing to learn on.

        experts: of K clusters, or what these answer where they are of several networks (`ensemble.of_families`);
        counts: (K, C) their examples of each class; clients: who replied in this round.
        """
        s = self.settings
        parts: Tree = {n: state[n] for n in DPhase.wire.server}
        if not self.distils(fed.round):
            return average, parts
        start = average if s.student_init == "average" else state["model"]
        taught = self._taught(start, parts, experts, counts, clients, fed, task)
        if taught is None:
            return average, parts
        theta, parts, losses = taught
        for name, value in losses.items():
            fed.log(f"distill/{name}", value)
        if s.distill_mix != 1:
            theta = tree.add(tree.scale(average, 1 - s.distill_mix), theta, s.distill_mix)
        return self._best(average, theta, clients, fed) if s.accept == "best" else theta, parts

    def _taught(
        self, start: Tree, parts: Tree, experts: Experts, counts: Tensor, clients: list[int], fed: Fed, task: Task
    ) -> tuple[Tree, Tree, dict[str, float]] | None:
        """Return what the student becomes, the D-phase's next parts, and the last losses; None where clients told nothing to learn on."""
        s, key = self.settings, fed.key("D-phase")
        if s.inputs == "statistics":
            told = self._told(parts["statistics"], start, clients, fed)
            if told is None:
                return None
            theta, losses = datafree.distill_on_draws(
                task, self._space(task), start, experts, counts, self._gaussians(told), s, key, fed.round
            )
            return theta, {**parts, "statistics": told if s.space == "inputs" else {}}, losses
        if s.inputs == "client_generators":
            known = self._generators(parts["generators"], clients, fed)
            if not known:
                return None
            drawn = client_generators.generators(known, s.noise, task.input_shape)
            space = statistics.inputs(task)
            theta, losses = datafree.distill_on_draws(task, space, start, experts, counts, drawn, s, key, fed.round)
            return theta, {**parts, "generators": known}, losses
        probe = fed.probe() if s.inputs == "probe" else None
        told = self._told({}, start, clients, fed) if s.moments else None
        theta, generator, losses = datafree.distill(
            task, start, experts, counts, parts["generator"], s, key, fed.round, probe,
            None if told is None else (start, self._gaussians(told), s.moments),
        )  # fmt: skip
        return theta, {**parts, "generator": generator}, losses

    def _gaussians(self, told: Tree) -> statistics.Gaussians:
        s = self.settings
        return statistics.gaussians([told[part] for part in statistics.PARTS], s.covariance, s.shrink)

    def _space(self, task: Task) -> statistics.Space:
        return statistics.features(task) if self.settings.space == "features" else statistics.inputs(task)

    @visit
    def sums(self, task: Task) -> Visit:
        """Send sums per class of a model's features, or of inputs, and of their squares (inputs: statistics, moments)."""
        return statistics.sums_visit(task, self._space(task), self.settings.covariance)

    @visit
    def train_generator(self, task: Task) -> Visit:
        """Train a generator of the client's own rows and send it, once (inputs: client_generators)."""
        s = self.settings
        return client_generators.generator_visit(task, self.config.seed, s.noise, s.generator_epochs, s.generator_lr)

    def _generators(self, known: Tree, clients: list[int], fed: Fed) -> Tree:
        """Return client -> its generator and rows, of all that have sent them."""
        new = [c for c in clients if str(c) not in known]
        got = fed.ask(self.train_generator, new)
        if not got.ids:
            return known
        rows = got.gather("rows")
        made = {str(c): {"generator": g, "rows": rows[c]} for c, g in got.gather("generator").items()}
        return {**known, **made}

    def cost(self, part: str, sent: Tree) -> int:
        return statistics.cost(part, sent)

    def _told(self, before: Tree, model: Tree, clients: list[int], fed: Fed) -> Tree | None:
        """Return the sums of `sums`: of features those of the round's clients; of inputs, which each client sends once, all so far,
        `before` those of earlier rounds. None where nobody has told any."""
        folds = tuple(total(part) for part in statistics.PARTS)
        if self.settings.space == "features":
            got = fed.ask(self.sums, clients, shared={"model": model}, fold=folds)
            return dict(got.folded) if got.ids else None
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
        got = fed.ask(self.score, clients, shared={"experts": candidates}, fold=mean("losses"))  # type: ignore[attr-defined]
        if not got.ids:
            return average
        best = int(got.folded["losses"].argmin())
        fed.log("distill/accepted", best / 2)
        return candidates[str(best)]

    def check(self, config: Config) -> list[str]:
        s, problems = self.settings, []
        if s.distill and self.splits_model():
            problems += statistics.check(config)
        return problems + datafree.check(s, config)

    def fits(self, federation: Federation) -> list[str]:
        s = self.settings
        if federation.kind in ("text", "instruct"):
            if s.inputs == "statistics" and s.space == "inputs":
                return ["method.space: inputs found, token ids have no Gaussians; allowed: features"]
            if s.inputs == "client_generators":
                return ["method.inputs: client_generators found, they make images or features, not texts"]
        return datafree.fits(s, federation) if s.distill else []
