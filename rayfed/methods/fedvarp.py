"""FedVARP: the last update of every client stands in for those who are not asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, MethodSettings, Part, Wire, mean, tree
from rayfed.methods._bases.remembering import KEEP, UP, Remembering

if TYPE_CHECKING:
    from rayfed import Fed, Task, Tree


class FedVARP(Remembering):
    """Jhunjhunwala et al. 2022, "FedVARP: Tackling the Variance Due to Partial Client Participation in Federated Learning"
    (UAI 2022, 2207.14130).

    Client i: as FedAvg; u_i is its update and h_i the last one before, 0 at first.
    Server, uniform: D = mean_S (u_i - h_i) + mean over all N of h_j; x^{r+1} = x^r + server_lr D; h_i <- u_i for S.
    For clients drawn uniformly. The form with one h for each cluster is left out. A round without replies changes nothing.
    Down: the model (P floats). Up: the update (P). Kept at clients: nothing. At the server: x, mean of h, and h_i of every client
    ((N + 2) P), here with the clients' states.
    """

    class Settings(MethodSettings):
        server_lr: float = Field(1.0, gt=0, description="Step of the server.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS)},
        up=UP,
        keep=KEEP,
        server={"model": Part(PARAMS), "h": Part(PARAMS, note="mean of h_i over all clients")},
    )

    def init(self, task: Task, key: int) -> Tree:
        return {"model": task.init_params(key), "h": tree.zeros(task.params_like)}

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        folds = (mean("delta", weight="one"), mean("old", weight="one"))
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=folds)
        if not got.ids:
            return state
        fresh = tree.sub(got.folded["delta"], got.folded["old"])
        model = tree.add(state["model"], tree.add(fresh, state["h"]), self.settings.server_lr)
        return {"model": model, "h": tree.add(state["h"], fresh, len(got) / fed.population)}
