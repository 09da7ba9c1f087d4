"""Ditto: a global model, and beside it a personal one at each client that is pulled towards it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayfed import PARAMS, SCALAR, Method, MethodSettings, Part, Visit, Wire, mean, model_of, sgd_visit, tree, visit
from rayfed.lazy import torch
from rayfed.visits import epochs

if TYPE_CHECKING:
    from rayfed import ClientContext, Fed, Task, Tree


class Ditto(Method):
    """Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization" (ICML 2021, 2012.04221), algorithm 1.

    Client i: w_i <- local SGD from w as in FedAvg, sends w_i - w; then v_i <- v_i - eta (grad F_i(v_i) + lam (v_i - w)), w as it was
    received, and keeps v_i. Server: w <- w + sum_i (n_i / n) (w_i - w): FedAvg to the bit, whatever `lam` is.
    v_i^0 is the run's initial model; a client that never took part, a held-out one too, is served w. `lam: 0` is local training.
    Down: w (P floats). Up: update (P), n_i. Kept at client i: v_i (P), how often it trained. At the server: w.
    """

    class Settings(MethodSettings):
        lam: float = Field(
            0.1, ge=0, description="Pull of the personal model towards the global one; the paper's grid: 0.05 to 2."
        )
        personal_epochs: int | None = Field(
            None, ge=1, description="Epochs of the personal model in a round; null: the local work of the config."
        )
        personal_lr: float | None = Field(None, gt=0, description="Its learning rate; null: the round's.")

    wire: ClassVar[Wire] = Wire(
        down={"model": Part(PARAMS, note="w")},
        up={"delta": Part(PARAMS, update=True)},
        keep={"v": Part(PARAMS, private=True), "visits": Part(SCALAR, private=True)},
        server={"model": Part(PARAMS, note="w")},
    )

    def own_init(self, task: Task, client: int, key: int) -> Tree:
        return {"v": task.initial, "visits": torch.zeros(())}

    @visit
    def train(self, task: Task) -> Visit:
        """Train w_i, then v_i."""
        s = self.settings
        common = sgd_visit(task.loss, self.local)
        phases = None if s.personal_epochs is None else [(epochs(s.personal_epochs), lambda name: True)]

        def pull(gradient: Tree, carry: Tree) -> Tree:
            return tree.add(gradient, tree.sub(carry["v"], carry["w"]), s.lam) if s.lam else gradient

        personal = sgd_visit(task.loss, self.local, train="v", hook=pull, phases=phases, lr=s.personal_lr)

        def begin(client: ClientContext) -> Tree:
            return {"model": client.shared["model"], "v": client.own["v"], "w": client.shared["model"]}

        def end(client: ClientContext, carry: Tree) -> tuple[Tree, Tree]:
            after = {"v": carry["v"], "visits": client.own["visits"] + 1}
            return {"delta": tree.sub(carry["model"], client.shared["model"])}, after

        # The global half comes first: its batches are then FedAvg's.
        return Visit(begin, [*common.phases, *personal.phases], end, local=personal.local)

    def round(self, state: Tree, fed: Fed, task: Task) -> Tree:
        got = fed.ask(self.train, fed.sample(), shared={"model": state["model"]}, fold=mean("delta"))
        return {"model": tree.add(state["model"], got.folded["delta"])}

    def view(self, task: Task) -> Visit:
        return model_of(lambda c: tree.where(c.own["visits"] > 0, c.own["v"], c.shared["model"]))
