"""FAL: federated adversarial training, in which clients learn on inputs moved against their own model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfed import MethodSettings, Need, adversarial, keys, mean, sgd_visit, tree, visit
from rayfed.config.schema import Ball
from rayfed.methods._bases.one_model import OneModel
from rayfed.training import gradient

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed import Fed, Task, Tree, Visit
    from rayfed.partition import Federation


class FAL(OneModel):
    """Li, Song and Yang 2023, "Federated Adversarial Learning: A Framework with Convergence Analysis" (ICML, 2208.03635):
    min_w mean_i mean_j max_{||x' - x_ij|| <= rho} l(f_w(x'), y_ij).

    Client i, on each batch with its present y: x' = x + uniform(-rho, rho), then `steps` times
        x' <- P(x' + step sign(grad_x' l(f_y(x'), y))),   P on the ball around x and on the range of inputs,
    then y <- y - eta grad l(f_y(x'), y), by the config's optimizer; with `clean` a share of the clean loss [inferred]. Attacks run in
    evaluation mode, so that running statistics see x' once. The number of steps and their length (rho / 4 by default) are usual
    ones of adversarial training, not read from the paper [inferred].
    Server: w <- w + server_lr mean_i (y_i - w), equal weights.
    Down: w (P). Up: the update (P). Kept at clients: nothing. At the server: w. Costs steps + 1 passes for each of FedAvg's.
    With rho = 0, or without a step and a random start, it is FedAvg with the same weights, to the bit.
    `evaluate.adversary` measures any method's models under such an attack: scope `robust`.
    """

    no_privacy = "takes its gradients on inputs that it has moved"

    class Settings(Ball, MethodSettings):
        needs: ClassVar = {"step": (Need("steps", (0,), but=True),)}

        steps: int = Field(4, ge=0, description="Steps of the attack on each batch, P.")
        step: float | None = Field(None, gt=0, description="Length of a step; null: rho / 4.")
        random_start: bool = Field(True, description="Whether it begins at a random point of the ball.")
        clean: float = Field(0.0, ge=0, lt=1, description="Share of the loss on inputs as they are.")
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update.")
        weight: Literal["one", "examples"] = Field(
            "one", description="Weights of the mean: equal (paper), or by examples."
        )

    def fits(self, federation: Federation) -> list[str]:
        return adversarial.misfit("method", self.settings, federation)

    @visit
    def train(self, task: Task) -> Visit:
        s = self.settings
        if not s.rho or not (s.steps or s.random_start):
            return sgd_visit(task.loss, self.local)

        def formula(params: Tree, carry: Tree, batch: Any, key: Tensor) -> tuple[Tree, Tree]:
            x = batch["x"]
            begin = adversarial.start(x, s, keys.fold(key, 1)) if s.random_start else x
            against = adversarial.moved(
                lambda z: task.loss(params, {**batch, "x": z}),
                x,
                begin,
                s,
                s.steps,
                s.rho / 4 if s.step is None else s.step,
            )
            slope = gradient(task.loss, params, {**batch, "x": against}, key)
            if s.clean:
                slope = tree.add(tree.scale(slope, 1 - s.clean), gradient(task.loss, params, batch, key), s.clean)
            return slope, {}

        return sgd_visit(task.loss, self.local, grad=formula)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        fold = mean("delta", weight=self.settings.weight)
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=fold)
        model = tree.add(state["model"], got.folded["delta"], self.settings.server_lr)
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"])}
