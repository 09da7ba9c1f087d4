"""Per-FedAvg: a model from which one local step goes far, learnt by gradients at the end of such a step (MAML, first order)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from rayfed import MethodSettings, mean, sgd_visit, tree, visit
from rayfed.config.schema import Local
from rayfed.methods._bases.one_model import OneModel
from rayfed.training import gradient, work
from rayfed.visits import steps

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class PerFedAvg(OneModel):
    """Fallah et al. 2020, "Personalized Federated Learning: A Meta-Learning Approach" (NeurIPS 2020, 2002.07948), first order (FO).

    Client i, each step on two batches: y~ = y - alpha grad F_i(y; D1); y <- y - lr grad F_i(y~; D2). Sends u_i = y - x^r. An epoch
    takes every row once, two batches a step. Server: as FedAvg. Served is x^r after `adapt_steps` plain steps x - alpha grad F_i on
    the client's own training data, whatever `local.optimizer` is. The forms with second derivatives (exact, HF) are left out.
    `alpha: 0` is FedAvg on the batches D2.
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: the model.
    """

    no_privacy = "takes the gradient of a point one step ahead"

    class Settings(MethodSettings):
        alpha: float = Field(0.01, ge=0, description="Rate of the inner step, and of adapting the served model.")
        adapt_steps: int = Field(1, ge=0, description="Local steps before the served model is used.")

    @visit
    def train(self, task: Task) -> Visit:
        alpha = self.settings.alpha

        def ahead(params: Tree, carry: Tree, batch: Any, key: Any) -> tuple[Tree, Tree]:
            one, two = batch
            inner = gradient(task.loss, params, one, key)
            return gradient(task.loss, tree.add(params, inner, -alpha), two, key), {}

        pieces = [(work(self.local, batches=2), lambda name: True)]
        return sgd_visit(task.loss, self.local, grad=ahead, phases=pieces)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return {"model": carry["model"]}, client.own

        tuned = [(steps(self.settings.adapt_steps), lambda name: True)]
        return sgd_visit(task.loss, Local(), phases=tuned, end=end, lr=self.settings.alpha)  # plain SGD
