"""FedLEx: a short exploration decides how strongly each parameter may move, for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, SCALAR, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.methods._bases.exploring import Exploring, ExploringSettings, spread

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class FedLEx(Exploring):
    """Internò et al. 2024, "Federated Loss Exploration for Improved Convergence on Non-IID Data" (IJCNN); the
    exploration as in the authors' "Automated Hybrid Model Pruning in Federated Learning through Loss Exploration" (2405.10271).

    Round 1 explores: explorers q train from theta_0 for `explore_epochs`; the server has, tensor by tensor and element by element,
    D = mean_q (theta_q - theta_0)^2 and
        G = (D - min D) / (max D - min D), or with `normalise: robust` (D - median) / (q75 - q25) cut to [0, 1];
    1 on a tensor whose D is the same everywhere [inferred]. theta_0 stays the model.
    Every later round: client i trains with the gradient G * g; server: v <- beta v + sum_i (n_i / n) u_i, x <- x + v.
    What hardly moved in the exploration is nearly frozen. The published code's explorers stop early (patience on the loss of the
    last batch), share one model object, and may have G made anew in every round; here all train the same epochs from theta_0, once.
    Down: the model (P), and G (P). Up: (theta_q - theta_0)^2 (P) once, then the update (P), n_i. Kept at clients: nothing.
    At the server: the model, G, v.
    """

    logs: ClassVar = {"fedlex/guide": ("mean of G over all parameters", "fraction")}

    class Settings(ExploringSettings):
        normalise: Literal["minmax", "robust"] = Field("minmax", description="How D becomes G.")
        server_momentum: float = Field(0.0, ge=0, lt=1, description="beta; the published command has 0.9.")

    no_buffers = "it scales what gradients move, and running statistics have none"
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "guide": Part(PARAMS, note="G")},
        up={"delta": Part(PARAMS, update=True), "squares": Part(PARAMS, note="(theta_q - theta_0)^2")},
        server={
            "model": Part(PARAMS),
            "guide": Part(PARAMS),
            "v": Part(PARAMS),
            "explored": Part(SCALAR, note="0 or 1"),
        },
    )

    def check(self, config: Config) -> list[str]:
        o = config.local.optimizer
        if o.name != "sgd" or o.momentum or o.weight_decay:
            return [
                "local.optimizer: fedlex needs sgd without momentum and weight decay, which would undo the scaling by G"
            ]
        return []

    def init(self, task: Task, key: int) -> Tree:
        zeros = tree.zeros(task.params_like)
        ones = tree.map(torch.ones_like, task.params_like)
        return {"model": task.init_params(key), "guide": ones, "v": zeros, "explored": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "guide": client.shared["guide"]}

        def guided(gradient: Tree, carry: Tree) -> Tree:
            return tree.map(lambda g, s: g * s, gradient, carry["guide"])

        return sgd_visit(task.loss, self.local, start=start, hook=guided)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        if not bool(state["explored"]):
            squares = self.explored(state, fed)
            if squares is None:
                return state
            guide = tree.map(self.guide, squares)
            fed.log("fedlex/guide", float(tree.flatten(guide).mean()))
            return {**state, "guide": guide, "explored": torch.ones(())}
        shared = {"model": state["model"], "guide": state["guide"]}
        got = fed.ask(self.train, fed.sample(), shared=shared, fold=mean("delta", weight="examples"))
        if not got.ids:
            return state
        v = tree.add(tree.scale(state["v"], self.settings.server_momentum), got.folded["delta"])
        return {**state, "model": tree.add(state["model"], v), "v": v}

    def guide(self, squares: Tensor) -> Tensor:
        """Return G of one tensor from D."""
        return spread(squares, robust=self.settings.normalise == "robust")
