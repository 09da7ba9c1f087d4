"""FedAvg: the mean of what clients learn, weighted by their examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree, Visit


class FedAvg(Method):
    """McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (1602.05629).

    Client i: y <- x^r, E epochs of minibatch SGD, sends u_i = y - x^r.
    Server: x^{r+1} = x^r + server_lr * sum_i (n_i / n) u_i over the round's clients, under `weight: one` their plain mean.
    Down: the model (P floats). Up: the update (P floats), n_i. Kept at clients: nothing. At the server: the model.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(
            1.0, gt=0, description="Step of the server along the mean update (1 is plain averaging)."
        )
        weight: Literal["examples", "one"] = Field(
            "examples", description="Weights of the mean: n_i, or the same for everybody (one site, one vote)."
        )

    sums_only = True
    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)}, up={"delta": Part(PARAMS, update=True)}, server={"model": Part(PARAMS)}
    )

    @visit
    def train(self, task: Task) -> Visit:
        return sgd_visit(task.loss, self.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(
            self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight=self.settings.weight)
        )
        model = tree.add(state["model"], got.folded["delta"], self.settings.server_lr)
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"])}
