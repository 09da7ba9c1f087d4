"""FedCM, also FedAvg-M: the last round's mean direction takes part in every local step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.methods._bases.directed import Directed

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class FedCM(Directed):
    """Xu et al. 2021, "FedCM: Federated Learning with Client-level Momentum" (2106.10874). Cheng et al. 2024 call it FedAvg-M and
    show that it converges whatever the clients' data are ("Momentum Benefits Non-IID Federated Learning Simply and Provably",
    2306.16504).

    Client i: y <- y - lr (beta g_i(y) + (1 - beta) g^r), K_i steps; sends (y - x^r) / (K_i lr) and K_i lr.
    Server, uniform: g^{r+1} = mean_S (x^r - y_i) / (K_i lr); x^{r+1} = x^r - gamma g^{r+1}, g^0 = 0, gamma = server_lr times the mean
    of K_i lr. beta is the weight of the fresh gradient: small is much momentum, and 1 is FedAvg with equal weights. Where clients
    take unequal numbers of steps each update is divided by its own (as published, there is one K). A round without replies changes
    nothing. Not the server momentum of Hsu et al. 2019, which is `fedavgm`.
    Down: x, g (2 P). Up: P floats and one number. Kept at clients: nothing. At the server: x, g.
    """

    class Settings(MethodSettings):
        beta: float = Field(0.1, gt=0, le=1, description="Weight of the fresh gradient in a local step.")
        server_lr: float = Field(1.0, gt=0, description="The server's gamma over K lr; 1 is averaging.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "g": Part(PARAMS, note="the last round's mean direction")},
        up={"delta": Part(PARAMS, update=True, note="u_i / (K_i lr)"), "steps": Part(SCALAR, note="K_i lr")},
        server={"model": Part(PARAMS), "g": Part(PARAMS)},
    )

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "g": tree.zeros(task.params_like)}

    @visit
    def train(self, task: Task) -> Visit:
        beta = self.settings.beta

        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "g": client.shared["g"]}

        def mixed(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(tree.scale(gradient, beta), carry["g"], 1 - beta)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            return self.sent(task, client, carry), client.own

        return sgd_visit(task.loss, self.local, start=start, hook=mixed, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = (mean("delta", weight="one"), mean("steps", weight="one"))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        if not got.ids:
            return state
        model, g = self.moved(state, got, task)
        return {"model": model, "g": g}
