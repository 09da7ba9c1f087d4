"""FedProx: local training with a pull towards the model it started from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayfed import MethodSettings, mean, sgd_visit, tree, visit
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedProx(OneModel):
    """Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (1812.06127).

    Client i minimises F_i(y) + (mu / 2) |y - x^r|^2: its gradient is g_i(y) + mu (y - x^r). Sends u_i = y - x^r.
    Server: x^{r+1} = x^r + sum_i (n_i / n) u_i (example weights, as clients are drawn uniformly; the paper's analysis
    draws them by n_i / n and averages uniformly).
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: the model.
    `mu: 0` is FedAvg to the bit.
    """

    class Settings(MethodSettings):
        mu: float = Field(0.01, ge=0, description="Strength of the pull; the paper's grid is 0.001 to 1.")

    sums_only = True

    @visit
    def train(self, task: Task) -> Visit:
        mu = self.settings.mu
        if not mu:
            return sgd_visit(task.loss, self.local)

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "anchor": client.shared["model"]}

        def pull(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, tree.sub(carry["model"], carry["anchor"]), mu)

        return sgd_visit(task.loss, self.local, start=start, hook=pull)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        return {"model": tree.add(state["model"], got.folded["delta"])}
