"""SCAFFOLD-M: control variates, and the last round's mean direction in every local step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, MethodSettings, Part, Wire, mean, sgd_visit, tree, visit
from rayfed.methods._bases.directed import Directed

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree, Visit


class ScaffoldM(Directed):
    """Cheng et al. 2024, "Momentum Benefits Non-IID Federated Learning Simply and Provably" (ICLR 2024, 2306.16504).

    Client i: y <- y - lr d, d = beta (g_i(y) - c_i + c) + (1 - beta) g^r, K_i steps; c_i+ = mean of its g_i, which is
    ((x^r - y) / (K_i lr) - (1 - beta) g^r) / beta + c_i - c; sends (y - x^r) / (K_i lr), K_i lr and c_i+ - c_i.
    Server, uniform: g^{r+1} = mean_S (x^r - y_i) / (K_i lr); x^{r+1} = x^r - gamma g^{r+1}, gamma = server_lr times the mean of K_i lr;
    c <- c + (1 / N) sum_S (c_i+ - c_i). All start at zero [inferred: the paper begins with gradients at x^0]. With beta = 1 it is
    SCAFFOLD with option II. The variance-reduced forms, which need gradients at x^{r-1} too, are left out. A round without replies
    changes nothing.
    Down: x, g, c (3 P). Up: 2 P floats and one number. Kept at client i: c_i (P). At the server: x, g, c.
    """

    class Settings(MethodSettings):
        beta: float = Field(0.1, gt=0, le=1, description="Weight of the fresh gradient in a local step.")
        server_lr: float = Field(1.0, gt=0, description="The server's gamma over K lr; 1 is averaging.")

    wire: ClassVar[Wire] = Wire(
        down={
            "model": Part(PARAMS),
            "g": Part(PARAMS, note="the last round's mean direction"),
            "c": Part(PARAMS, note="mean of c_i over all clients"),
        },
        up={
            "delta": Part(PARAMS, update=True, note="u_i / (K_i lr)"),
            "steps": Part(SCALAR, note="K_i lr"),
            "dc": Part(PARAMS, note="c_i+ - c_i"),
        },
        keep={"c_i": Part(PARAMS, private=True)},
        server={"model": Part(PARAMS), "g": Part(PARAMS), "c": Part(PARAMS)},
    )

    def init(self, task: Task, key: int) -> Tree:
        g, c = (tree.zeros(task.params_like) for _ in range(2))
        return {"model": task.init_params(key), "g": g, "c": c}

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"c_i": tree.zeros(task.params_like)}

    @visit
    def train(self, task: Task) -> Visit:
        beta = self.settings.beta

        def start(client: ClientContext) -> Tree:
            drift = tree.sub(client.shared["c"], client.own["c_i"])
            bend = tree.add(tree.scale(drift, beta), client.shared["g"], 1 - beta)
            return {"model": client.shared["model"], "bend": bend}

        def mixed(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(carry["bend"], gradient, beta)

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            sent = self.sent(task, client, carry)
            fresh = tree.scale(tree.add(sent["delta"], carry["bend"]), -1 / beta)
            return {**sent, "dc": tree.sub(fresh, client.own["c_i"])}, {"c_i": fresh}

        return sgd_visit(task.loss, self.local, start=start, hook=mixed, end=end)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = tuple(mean(part, weight="one") for part in ("delta", "steps", "dc"))
        got = fed.ask(self.train, fed.sample(), shared=state, fold=folds)
        if not got.ids:
            return state
        model, g = self.moved(state, got, task)
        return {"model": model, "g": g, "c": tree.add(state["c"], got.folded["dc"], len(got) / fed.population)}
