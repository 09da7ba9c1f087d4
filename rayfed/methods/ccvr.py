"""CCVR: the average's last layer is refitted at the server on features drawn from class Gaussians."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import CLASSES, PARAMS, MethodSettings, Part, Wire, keys, mean, total, tree, visit
from rayfed.distill import statistics
from rayfed.methods._bases.one_model import OneModel
from rayfed.task import needs_classes
from rayfed.wire import ANY, tensor

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit
    from rayfed.config.schema import Config
    from rayfed.partition import Federation


class CCVR(OneModel):
    """Luo et al. 2021, "No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID Data" (NeurIPS 2021,
    2106.05001).

    Client i: FedAvg's training and update; then, of the averaged model's features z = f(x) of all its training rows and per
    class c, in eval mode: n = rows, s = sum z, Q = sum z z^T (or its diagonal).
    Server: w = (f, g) <- sum_i (n_i / n) w_i; with the sums over clients m_c = s / n, S_c = (Q - s s^T / n) / (n - 1), which are the
    paper's pooled mean and covariance; `steps` steps of SGD on the last layer g over z ~ N(m_c, S_c) with label c. f is fixed.
    `when`: `after` the last round (the paper), `serve` in every round for evaluation only, while training goes on from
    the plain average, or in a `loop`: the next round starts from the refitted model [ours].
    The paper draws a fixed set of features, M_c in proportion to n_c, and passes over it; here each step draws anew, and
    labels are uniform unless `rho: 1` [ours]. Sums in the place of each client's mean and covariance, the diagonal,
    `shared`, `shrink` and `relu` are ours as well. A class that nobody holds keeps its row of g.
    `steps: 0` is FedAvg to the bit.
    A run that `stop` ends early has no last round: under `after` it ends with the plain average.
    Down: the model (P), then the averaged model (P). Up: update (P), n_i; rows (C), sums (C d), squares (C d, or
    C d (d + 1) / 2). Kept at clients: nothing. At the server: the refitted model and what the next round starts from.
    """

    logs: ClassVar = {"refit/loss": ("cross-entropy of the last refitting step on drawn features", "nats")}

    class Settings(MethodSettings):
        when: Literal["after", "serve", "loop"] = Field(
            "after",
            description="After the last round (the paper), in each round for evaluation only, or for the next round too (ours).",
        )
        asked: Literal["auto", "round", "all"] = Field(
            "auto", description="Whose features count: the round's clients', all clients'; auto: all under `after`."
        )
        steps: int = Field(50, ge=0, description="Refitting steps; 0 is FedAvg.")
        lr: float = Field(0.1, gt=0, description="SGD's rate for the last layer.")
        batch: int = Field(64, ge=1, description="Drawn features per step.")
        covariance: statistics.Covariance = Field(
            "diag", description="Of each class its diagonal, of each class whole (the paper), or one for all classes."
        )
        shrink: float = Field(0.0, ge=0, le=1, description="Share of a multiple of the identity in covariances.")
        rho: float = Field(
            0.0, ge=0, description="Exponent of class counts in label draws; 0 is uniform, 1 the paper's."
        )
        relu: bool = Field(False, description="Clip drawn features at 0, where the model's end in a ReLU.")
        least: int = Field(1, ge=1, description="A client leaves out classes of which it holds fewer rows.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="to train; then averaged, to take features of")},
        up={
            "delta": Part(PARAMS, update=True),
            "rows": Part(CLASSES, note="of each class"),
            "sums": Part(tensor("C", "d"), note="of features"),
            "squares": Part(ANY, note="(C, d), or symmetric (C, d, d)"),
        },
        server={
            "model": Part(PARAMS, note="refitted"),
            "average": Part(PARAMS, note="what the next round starts from"),
        },
    )

    def fits(self, federation: Federation) -> list[str]:
        return needs_classes(federation, "ccvr draws features of classes")

    def check(self, config: Config) -> list[str]:
        return statistics.check(config)

    def reads_rounds(self) -> str | None:
        return "method.when" if self.settings.when == "after" else None

    def splits_model(self) -> bool:
        return True

    def init(self, task: Task, key: int) -> Tree:
        first = task.init_params(key)
        return {"model": first, "average": first}

    @visit
    def features(self, task: Task) -> Visit:
        """Send sums of the averaged model's features and of their squares, per class."""
        return statistics.sums_visit(task, statistics.features(task), self.settings.covariance, self.settings.least)

    def cost(self, part: str, sent: Tree) -> int:
        return statistics.cost(part, sent)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["average"]}, fold=mean("delta"))
        average = tree.add(state["average"], got.folded["delta"])
        everyone = s.asked == "all" or (s.asked == "auto" and s.when == "after")
        to = range(fed.population) if everyone else got.ids
        # who serves goes on serving what was refitted last, where nobody says anything
        model, loss = state["model"] if s.when == "serve" and s.steps else average, None
        if len(to) and s.steps and (got.ids if s.when != "after" else fed.round == fed.rounds):
            sums = fed.ask(
                self.features, to, shared={"model": average}, fold=tuple(total(part) for part in statistics.PARTS)
            )
            if sums.ids:
                found = statistics.gaussians([sums.folded[part] for part in statistics.PARTS], s.covariance, s.shrink)
                rng = keys.torch_generator(fed.key("refit"))
                model, loss = statistics.refit(
                    task, statistics.features(task), average, found, rng, steps=s.steps, lr=s.lr, batch=s.batch,
                    rho=s.rho, relu=s.relu,
                )  # fmt: skip
        if loss is not None:
            fed.log("refit/loss", loss)
        return {"model": model, "average": model if s.when == "loop" else average}
