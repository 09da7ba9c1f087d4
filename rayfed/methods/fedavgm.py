"""FedAvgM: heavy-ball momentum at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, tree
from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FedAvgM(OneModel):
    """Hsu et al. 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification"
    (1909.06335).

    Client i: as FedAvg. Server: Delta = sum_i (n_i / n) u_i; v <- beta v + Delta; x <- x + eta_g v, v^0 = 0.
    There is no factor 1 - beta: the steady step is 1 / (1 - beta) larger, so scale eta_g.
    A round without replies changes nothing.
    Down: the model (P floats). Up: the update (P), n_i. Kept at clients: nothing. At the server: x, v (2 P).
    """

    class Settings(MethodSettings):
        momentum: float = Field(0.9, ge=0, lt=1, description="beta.")
        server_lr: float = Field(1.0, gt=0, description="Server step eta_g along the momentum.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up={"delta": Part(PARAMS, update=True)},
        server={"model": Part(PARAMS), "v": Part(PARAMS)},
    )

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "v": tree.zeros(task.params_like)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        s = self.settings
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta", weight="examples"))
        if not got.ids:
            return state
        v = tree.add(tree.scale(state["v"], s.momentum), got.folded["delta"])
        model = tree.add(state["model"], v, s.server_lr)
        return {"model": task.keep_averages(model, state["model"], got.folded["delta"]), "v": v}
