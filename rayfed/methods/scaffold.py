"""SCAFFOLD: control variates that take the drift out of local steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, Method, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit
    from rayfed.config.schema import Config


class Scaffold(Method):
    """Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning" (1910.06378), option II.

    Client i: y <- y - lr (g_i(y) - c_i + c), K_i steps; c_i+ = c_i - c + (x^r - y) / sum of its lr (K_i lr when constant).
    Server, uniform weights over the m clients of the round:
        x^{r+1} = x^r + server_lr * mean u_i;  c <- c + (m / N) * mean (c_i+ - c_i).
    Down: x, c (2 P). Up: u_i, c_i+ - c_i (2 P). Kept at client i: c_i (P). At the server: x, c.
    N is the number of clients that can take part. K_i and lr are those the client really took, not a common constant.
    Option II needs plain SGD: with momentum or weight decay (x - y) / (K lr) is not the mean gradient.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step of the server along the mean update (the paper's eta_g).")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS), "c": Part(PARAMS, note="server control variate")},
        up={"delta": Part(PARAMS, update=True), "dc": Part(PARAMS, note="c_i+ - c_i")},
        keep={"c_i": Part(PARAMS, private=True)},
        server={"model": Part(PARAMS), "c": Part(PARAMS)},
    )

    def check(self, config: Config) -> list[str]:
        o = config.local.optimizer
        if o.name != "sgd" or o.momentum or o.weight_decay:
            return ["local.optimizer: scaffold (option II) needs sgd without momentum and weight decay"]
        return []

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "c": tree.zeros(task.params_like)}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"c_i": tree.zeros(task.params_like)}

    @visit
    def train(self, task: Task) -> Visit:
        def start(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "drift": tree.sub(client.shared["c"], client.own["c_i"])}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            moved = tree.sub(client.shared["model"], carry["model"])
            c_new = tree.add(tree.sub(client.own["c_i"], client.shared["c"]), moved, 1 / client.info.sum_lr)
            return {
                "delta": tree.sub(carry["model"], client.shared["model"]),
                "dc": tree.sub(c_new, client.own["c_i"]),
            }, {"c_i": c_new}

        return sgd_visit(task.loss, self.local, start=start, hook=lambda g, carry: tree.add(g, carry["drift"]), end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(
            self.train, fed.sample(), shared=state, fold=(mean("delta", weight="one"), mean("dc", weight="one"))
        )
        return {
            "model": task.keep_averages(
                tree.add(state["model"], got.folded["delta"], self.settings.server_lr),
                state["model"],
                got.folded["delta"],
            ),
            "c": tree.add(state["c"], got.folded["dc"], len(got) / fed.population),
        }
